"""The real data next to the repository, and a generated stand-in of the same layout and formats."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REAL = Path(os.environ.get("TUNESMITH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")

NOUNS = [
    ("사과", "apples"), ("연필", "pencils"), ("의자", "chairs"), ("우산", "umbrellas"),
    ("모자", "hats"), ("창문", "windows"), ("시계", "clocks"), ("장갑", "gloves"),
]  # fmt: skip
PLACES = [
    ("서울의 시장", "the market in Seoul"), ("작은 도서관", "a small library"),
    ("바닷가 마을", "a village by the sea"), ("오래된 학교", "the old school"),
    ("기차역 앞", "the square at the station"),
]  # fmt: skip


@dataclass(frozen=True)
class SharedData:
    """A folder with `gsm8k` and `korean-english`, and the numbers of rows that tests expect in it."""

    folder: Path
    train_count: int
    test_count: int
    solved_count: int
    pair_count: int
    min_row_count: int
    min_drop_count: int
    test_split: int

    @property
    def gsm8k(self) -> Path:
        return self.folder / "gsm8k"

    @property
    def news(self) -> Path:
        return self.folder / "korean-english"


def real_data() -> SharedData:
    return SharedData(REAL, 7473, 660, 660, 1000, 1901, 11, 200)


def write_stand_in(folder: Path) -> SharedData:
    maths, news = folder / "gsm8k", folder / "korean-english"
    maths.mkdir(parents=True)
    news.mkdir()
    problems = [_problem(number) for number in range(120)]
    _write_lines(maths / "train.jsonl", [json.dumps(row) for row in problems[:80]])
    _write_lines(maths / "test.jsonl", [json.dumps(row) for row in problems[80:]])
    solved = [json.dumps(_graded(number, row)) for number, row in enumerate(problems[80:])]
    _write_lines(maths / "model_solutions.jsonl", solved)
    pairs = [
        (f"{place}에서 {noun} {n}개를 팔았습니다.", f"They sold {n} {thing} at {where}.")
        for n, ((noun, thing), (place, where)) in enumerate(
            ((noun, place) for noun in NOUNS for place in PLACES), start=12
        )
    ]
    random.Random(0).shuffle(pairs)
    bad = [("A B C 123", "A B C 123"), ("네.", "Yes, " + "and they all came home late again " * 9)]
    for name, part in (("train", [*pairs[:30], *bad]), ("test", pairs[30:])):
        _write_lines(news / f"{name}.ko", [korean for korean, _ in part])
        _write_lines(news / f"{name}.en", [english for _, english in part])
    return SharedData(folder, 80, 40, 40, 32, 60, 2, 8)


def _problem(number: int) -> dict[str, str]:
    _, thing = NOUNS[number % 8]
    _, where = PLACES[number % 5]
    boxes, each = 3 + number, 100 + 7 * number
    total = boxes * each
    return {
        "question": f"There are {boxes} boxes of {each} {thing} at {where}. How many {thing} is that?",
        "answer": f"It is {boxes}*{each}=<<{boxes}*{each}={total}>>{total} {thing}.\n#### {total:,}",
    }


def _graded(number: int, problem: dict[str, str]) -> dict[str, Any]:
    """Return a problem with one solution per model; `number` selects which of them are correct."""
    total = int(problem["answer"].rpartition("#### ")[2].replace(",", ""))
    row: dict[str, Any] = {"question": problem["question"], "ground_truth": problem["answer"]}
    for position, model in enumerate(MODELS):
        correct = bool(number >> position & 1)
        found = total if correct else total + position + 1
        solution = f"Model {position} multiplies and gets {found}.\n#### {found}"
        row[model] = {"solution": solution, "is_correct": correct}
    return row


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
