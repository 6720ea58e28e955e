"""The datasets of `prepare`: recipes, filters, conversion and parts."""

import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import Programs
from trainers.configs.stages.prepare import PrepareConfig
from trainers.data.files.jsonl import iter_rows
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.data.validate import validate_file
from trainers.prepare import DROPS
from trainers.prepare import run as prepare
from trainers.runtime.errors import DatasetFileNotFound, DatasetInvalid
from trainers.runtime.events import EventWriter

Rows = list[dict[str, Any]]
Write = Callable[[Rows], str]
QUESTIONS = [
    {"question": f"How many keys are {n} and 2?", "answer": f"{n} + 2\n#### {n + 2}"} for n in range(40)
]
SENTENCES = [
    ("오늘은 날씨가 좋습니다", "The weather is fine today"),
    ("그는 학교에 갔다", "He went to school"),
    ("같은 문장입니다 번역이 아닙니다", "같은 문장입니다 번역이 아닙니다"),
    ("", "An empty side"),
    ("나는 책을 읽는다", "I am reading a book"),
]


def prepare_parts(run_dir: Path, **config: Any) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Return the result and the rows of each part; every part passes validation."""
    result = prepare(PrepareConfig.model_validate(config), run_dir, EventWriter(None))
    parts = {}
    for described in result["datasets"]:
        path = run_dir / described["path"]
        report = validate_file(path)
        assert (report.fault_count, report.row_count, report.format) == (
            0,
            described["rows"],
            described["format"],
        )
        parts[described["part"]] = [row for _, row in iter_rows(path)]
    return result, parts


def write_aligned(folder: Path) -> dict[str, str]:
    for name, side in (("ko", 0), ("en", 1)):
        (folder / f"t.{name}").write_text("".join(f"{pair[side]}\n" for pair in SENTENCES), encoding="utf-8")
    return {"kind": "aligned", "korean": str(folder / "t.ko"), "english": str(folder / "t.en")}


def test_aligned_files_become_rows_of_both_directions(tmp_path: Path) -> None:
    result, parts = prepare_parts(tmp_path, source=write_aligned(tmp_path), recipe={"kind": "translation"})
    assert [row["direction"] for row in parts["train"]] == ["ko_en", "en_ko"] * 3
    assert parts["train"][0]["messages"][1]["content"] == "The weather is fine today"
    assert result["drops"]["counts"] == {"identical_sides": 1, "empty_side": 1}
    drops = [json.loads(line) for line in (tmp_path / DROPS).read_text().splitlines()]
    assert [(drop["line"], drop["reason"]) for drop in drops] == [(3, "identical_sides"), (4, "empty_side")]


def test_translations_are_cleaned_and_unlike_ones_are_reported(tmp_path: Path) -> None:
    pairs = [
        ("그는 학교에 갔다", "He went to &quot;school&quot;"),
        ("그는  학교에 갔다", "She went to the market"),
        ("embattled 곤경에 처한", "The embattled president has said that he does not plan to resign."),
        ("깨진 \ufffd 문장", "A broken sentence"),
    ]
    (tmp_path / "t.tsv").write_text("".join(f"{ko}\t{en}\n" for ko, en in pairs), encoding="utf-8")
    config = {"source": {"kind": "tsv", "path": str(tmp_path / "t.tsv")}, "recipe": {"kind": "translation"}}
    with EventWriter(tmp_path / "events.jsonl") as events:
        result = prepare(PrepareConfig.model_validate(config), tmp_path, events)
    assert result["drops"]["counts"] == {"broken_text": 1, "misaligned": 1}
    assert (result["recipe"]["entities_decoded"], result["recipe"]["first_cleaned"]) == (1, [1])
    assert result["recipe"]["first_unlike"] == [{"line": 2, "first_line": 1, "side": "Korean"}]
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["code"] for event in written if event["type"] == "warning"] == ["unlike_targets"]
    rows = [row for _, row in iter_rows(tmp_path / "datasets" / "train.jsonl")]
    assert rows[0]["messages"][1]["content"] == 'He went to "school"'


def test_both_directions_of_a_pair_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    text = [(f"문장 번호 {'가' * n} 입니다", f"This is sentence number {'a' * n}") for n in range(1, 30)]
    (tmp_path / "t.tsv").write_text("".join(f"{ko}\t{en}\n" for ko, en in text), encoding="utf-8")
    source = {"kind": "tsv", "path": str(tmp_path / "t.tsv")}
    recipe = {"kind": "translation", "check_length": False}
    _, parts = prepare_parts(tmp_path, source=source, recipe=recipe, split={"test": 10, "validation": 0.2})
    lines = {part: {row["line"] for row in rows} for part, rows in parts.items()}
    assert not lines["train"] & lines["test"] and not lines["train"] & lines["validation"]
    assert sum(map(len, parts.values())) == 2 * len(text)


def test_rows_of_one_prompt_stay_on_one_side_of_a_split(tmp_path: Path, write_rows: Write) -> None:
    asked = [f"사과 {n}개를 나누면 몇 개인가?" for n in range(30)]
    rows = [
        {"question": question, "answer": answer}
        for text in asked
        for question, answer in ((text, "a"), (unicodedata.normalize("NFD", text), "b"))
    ]
    _, parts = prepare_parts(tmp_path, dataset=write_rows(rows), split={"test": 0.3})
    prompts = {
        part: {unicodedata.normalize("NFC", row["question"]) for row in rows} for part, rows in parts.items()
    }
    assert prompts["train"] and prompts["test"] and not prompts["train"] & prompts["test"]


def test_graded_solutions_become_preference_pairs(tmp_path: Path, write_rows: Write) -> None:
    solutions = [
        {"solution": "1 + 2\n#### 3", "is_correct": True},
        {"solution": "#### 4", "is_correct": False},
    ]
    dataset = write_rows([{"question": "What is 1 + 2?", "solutions": solutions}])
    result, parts = prepare_parts(tmp_path, dataset=dataset, recipe={"kind": "maths_pairs"})
    (row,) = parts["train"]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("1 + 2\n#### 3", "#### 4")
    assert result["recipe"]["pairs"] == 1


def test_maths_prompts_carry_the_bare_final_answer(tmp_path: Path, write_rows: Write) -> None:
    _, parts = prepare_parts(
        tmp_path, dataset=write_rows(QUESTIONS), recipe={"kind": "maths_prompts", "system": "Count."}
    )
    assert parts["train"][3] == {"system": "Count.", "question": QUESTIONS[3]["question"], "answer": "5"}


def test_each_filter_says_what_it_dropped_and_from_which_line(tmp_path: Path, write_rows: Write) -> None:
    rows = [*QUESTIONS[:3], QUESTIONS[0], {"question": "long " * 50, "answer": "#### 1"}]
    held_out = write_rows([QUESTIONS[1]])
    filters = [
        {"kind": "duplicates"},
        {"kind": "characters", "maximum": 100},
        {"kind": "held_out", "not_in": [held_out]},
    ]
    result, parts = prepare_parts(tmp_path, dataset=write_rows(rows), filters=filters)
    assert parts["train"] == [QUESTIONS[0], QUESTIONS[2]]
    dropped = [(drop["line"], drop["reason"]) for drop in result["drops"]["first"]]
    assert dropped == [(2, "held_out"), (4, "duplicate"), (5, "too_long")]


def test_tokens_are_counted_by_the_model_s_own_tokenizer(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    # The last row would take 3 s to tokenize.
    rows = [QUESTIONS[0], *({"question": "many " * n, "answer": "#### 1"} for n in (80, 400_000))]
    filters = [{"kind": "tokens", "maximum": 60}]
    result, parts = prepare_parts(tmp_path, dataset=write_rows(rows), base=str(starter), filters=filters)
    assert parts["train"] == [QUESTIONS[0]]
    assert all("tokens; the maximum is 60" in drop["detail"] for drop in result["drops"]["first"])
    assert result["rows"][0]["loss_token_count"] > 0


def test_rows_are_converted_into_the_asked_shape(tmp_path: Path, write_rows: Write) -> None:
    result, parts = prepare_parts(tmp_path, dataset=write_rows(QUESTIONS), convert_to="sharegpt")
    assert parts["train"][0]["conversations"][0] == {"from": "human", "value": QUESTIONS[0]["question"]}
    assert result["datasets"][0]["format"] == "sharegpt"


def test_a_folder_of_data_files_is_read_as_the_hub_s_would_be(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines = "".join(f"{json.dumps(row)}\n" for row in QUESTIONS)
    (tmp_path / "data" / "train.jsonl").write_text(lines)
    source = {"kind": "hub", "name": str(tmp_path / "data")}
    _, parts = prepare_parts(tmp_path, source=source, recipe={"kind": "maths_sft"})
    assert len(parts["train"]) == 40


def test_the_model_s_own_answers_become_pairs_of_right_and_wrong(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    dataset = write_rows([dict(row) for row in generate_problems(24, ProblemSplit.train, seed=3)])
    recipe = {"kind": "on_policy_pairs", "num_generations": 8, "max_new_tokens": 24, "seed": 1}
    result, parts = prepare_parts(tmp_path, dataset=dataset, base=str(starter), recipe=recipe)
    report = result["recipe"]
    assert (report["prompts"], report["completions"], report["pairs"]) == (24, 192, len(parts["train"]))
    assert 0 < report["mean_reward"] < 1
    assert all(row["chosen"] != row["rejected"] for row in parts["train"])


def test_completions_of_equal_reward_make_no_pairs(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    dataset = write_rows([dict(row) for row in generate_problems(2, ProblemSplit.train, seed=3)])
    recipe = {"kind": "on_policy_pairs", "num_generations": 2, "max_new_tokens": 4, "margin": 1000}
    with pytest.raises(DatasetInvalid, match="No pairs were made"):
        prepare_parts(tmp_path, dataset=dataset, base=str(starter), recipe=recipe)


def test_the_error_for_no_rows_left_counts_the_dropped(tmp_path: Path, write_rows: Write) -> None:
    with pytest.raises(DatasetInvalid, match="No rows are left: 40 were dropped"):
        prepare_parts(
            tmp_path, dataset=write_rows(QUESTIONS), filters=[{"kind": "characters", "minimum": 9000}]
        )


def test_a_row_that_a_recipe_cannot_use_is_named(tmp_path: Path, write_rows: Write) -> None:
    rows = [*QUESTIONS[:2], {"question": "And?", "answer": "no final answer"}]
    with pytest.raises(DatasetInvalid, match="Line 3: `answer` contains no final answer"):
        prepare_parts(tmp_path, dataset=write_rows(rows), recipe={"kind": "maths_sft"})


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    source = {"kind": "tmx", "path": str(tmp_path / "none.tmx")}
    with pytest.raises(DatasetFileNotFound, match=r"none\.tmx does not exist"):
        prepare_parts(tmp_path, source=source, recipe={"kind": "translation"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dataset": "d"}, "nothing to do"),
        ({}, "either dataset or source"),
        ({"dataset": "d", "recipe": {"kind": "translation"}}, "reads sentence pairs"),
        ({"source": {"kind": "tmx", "path": "t"}}, "needs the recipe translation"),
        ({"dataset": "d", "recipe": {"kind": "on_policy_pairs"}}, "needs a base"),
        ({"dataset": "d", "filters": [{"kind": "tokens"}]}, "needs a base"),
    ],
)
def test_a_config_whose_pieces_do_not_fit_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig.model_validate(config)


def test_the_program_expands_variables_in_paths(
    programs: Programs, tmp_path: Path, write_rows: Write
) -> None:
    dataset = Path(write_rows(QUESTIONS))
    path = tmp_path / "prepare.yaml"
    lines = ["stage: prepare", f"dataset: ${{WHERE:-{dataset.parent}}}/{dataset.name}", "split: {test: 5}"]
    path.write_text("\n".join(lines))
    command = [sys.executable, "-m", "trainers.prepare", "--config", str(path)]
    process = programs.popen([*command, "--run-dir", str(tmp_path / "run")])
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert sum(1 for _ in iter_rows(tmp_path / "run" / "datasets" / "test.jsonl")) == 5
