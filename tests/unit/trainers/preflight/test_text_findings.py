"""Goal: each planted fault of meaning gives its finding, with count, first lines and level; clean files none.

Method: rows are written to a file and read as a training stage reads them.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.shared_data import SharedData
from trainers.configs.recipes import TranslationRecipe
from trainers.data.files.aligned import read_aligned
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_cleaning import TranslationReport
from trainers.data.filters.row_filters import drop_duplicates
from trainers.data.formats import RowFormat
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.data.recipes.filtered_translation import filtered_translation_rows
from trainers.preflight.findings import Finding
from trainers.preflight.row_findings import RowTexts, check_file, check_texts
from trainers.rendering.render import read_preferences, read_prompt_completions

Rows = list[dict[str, Any]]
CLEAN = [dict(row) for row in generate_problems(40, ProblemSplit.train, seed=2)]
SPECIAL_TOKENS = ["<|im_start|>", "<|im_end|>"]
LABELS = [{"question": f"Is {n} even?", "answer": "no" if n % 2 else "yes"} for n in range(60)]


def find(path: Path, *, have_pairs: bool = False) -> list[Finding]:
    rows = (
        (RowTexts(pairs, pairs[:1]) for pairs in read_preferences(str(path)))
        if have_pairs
        else (RowTexts(turns, turns) for turns in read_prompt_completions(str(path)))
    )
    return [*check_file(path), *check_texts(rows, SPECIAL_TOKENS, check_completions=True)]


def save(tmp_path: Path, rows: Rows) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def ask(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer}


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    turns = [
        {"role": "assistant" if n % 2 else "user", "content": content} for n, content in enumerate(contents)
    ]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (ask("What is missing?", "nan"), "missing_values"),
        (ask("null", "Nothing."), "missing_values"),
        (ask("What is there?", "\u200b\u2060"), "completion_empty"),
        (ask("\u200b \ufeff", "Nothing."), "prompt_empty"),
        (ask("Translate: {text}", "Good morning."), "unfilled_placeholders"),
        (ask("Write a letter.", "Dear [Your Name], hello."), "unfilled_placeholders"),
        (ask("Who?", "Obamaâ€™s friend"), "wrong_encoding"),
        (ask("인사", "안녕하세요".encode().decode("latin-1")), "wrong_encoding"),
        (ask("Who?", "Tom &amp; Jerry"), "html_entities"),
        (ask("Who?", "Tom.</s>"), "other_template_marks"),
        (chat("Hi<|eot_id|>", "Hello."), "other_template_marks"),
        (ask("Who?", "Tom.<|im_end|>"), "special_tokens_in_text"),
        (ask("What is the capital?", "What is  the capital？"), "completion_equals_prompt"),
        (ask(CLEAN[3]["question"] + "\u200b", CLEAN[3]["answer"]), "duplicates"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_row_with_a_fault_gives_that_finding_with_its_line(
    tmp_path: Path, row: dict[str, Any], code: str
) -> None:
    (found,) = find(save(tmp_path, [*CLEAN, row]))
    assert (found.code, found.count, found.examples[0].line) == (code, 1, 41)
    assert found.level == ("error" if code == "completion_empty" else "warning")


@pytest.mark.parametrize(("answer", "code"), [("NaN", "missing_values"), ("í•œê¸€", "wrong_encoding")])
def test_a_fault_in_most_rows_is_an_error(tmp_path: Path, answer: str, code: str) -> None:
    rows = [*CLEAN[:4], *(ask(f"Which is {n}?", f"{answer}") for n in range(8))]
    (found,) = find(save(tmp_path, rows))
    assert (found.code, found.level, found.count, len(found.examples)) == (code, "error", 8, 5)


@pytest.mark.parametrize(
    ("rows", "code", "count"),
    [
        ([ask(f"Step {n}?", rf"First {n}.\nThen {n}.") for n in range(4)], "escaped_line_breaks", 4),
        ([ask(f"Which is {n}?", ".") for n in range(12)], "completion_repeated", 12),
        (
            [ask(f"Q: How many are {n} and 4? A: {n + 4}", f"{n + 4}") for n in range(400)],
            "completion_in_prompt",
            400,
        ),
        (
            [ask(f"Solve {n}. Hint: {'it is ' * 6}{n}!! Go.", f"{'it is ' * 6}{n}") for n in range(12)],
            "completion_in_prompt",
            12,
        ),
        (
            [ask("Translate the text.", f"Sentence {n} is here.") for n in range(12)],
            "prompt_with_unlike_answers",
            12,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_of_many_rows_is_found_from_a_share_on(
    tmp_path: Path, rows: Rows, code: str, count: int
) -> None:
    (found,) = find(save(tmp_path, [*CLEAN, *rows]))
    assert (found.code, found.level, found.count) == (code, "warning", count)
    assert found.examples[0].line == 41
    assert find(save(tmp_path, [*CLEAN, *rows[:2]])) == []


def test_labels_repeat_but_a_constant_is_found_from_one_character_on(tmp_path: Path) -> None:
    assert find(save(tmp_path, LABELS)) == []
    (found,) = find(save(tmp_path, [ask(row["question"], "A") for row in LABELS]))
    assert (found.code, found.count) == ("completion_repeated", 60)


def test_a_chosen_completion_that_repeats_the_prompt_is_found(tmp_path: Path) -> None:
    rows = [{"prompt": row["question"], "chosen": row["answer"], "rejected": "I refuse."} for row in CLEAN]
    assert find(save(tmp_path, rows), have_pairs=True) == []
    rows[6]["chosen"] = rows[6]["prompt"]
    rows[7]["rejected"] = rows[7]["prompt"]
    (found,) = find(save(tmp_path, rows), have_pairs=True)
    assert (found.code, found.examples[0].line) == ("completion_equals_prompt", 7)


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
AGENT = {
    "tools": TOOLS,
    "messages": [
        {"role": "developer", "content": "Use the tools."},
        {"role": "user", "content": "Add 1 and 2."},
        {"role": "assistant", "content": "Not trained.", "weight": 0},
        {"role": "user", "content": "Please."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "&lt;3&gt; {value} null"},
        {"role": "assistant", "content": "It is 3.", "weight": 1},
    ],
}
CODE = (
    "Use this:\n\n```python\nprint(f'{name}\\n', '&amp;', '<|eot_id|>')\n```\n"
    "The set is {x}, and $\\nabla$ too."
)
SPOKEN = [
    ("안녕하세요? 오늘은 날씨가 좋네요 👩\u200d👩\u200d👧", "네, 산책하기 좋은 날입니다 🇰🇷❤️"),
    ("ما هي عاصمة مصر؟", "عاصمة مصر هي القاهرة \u200f(Cairo)."),
    ("מה שלומך?", "שלום! הכול בסדר, תודה."),
    ("“Qu’est-ce que c’est ?”", "C’est un café… « très bon »."),
    ("¡¿Cómo está?!", "Spaß“ und größe — déjà vu… 100 %"),
]


def encode(rows: Rows, newline: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows).encode()


CLEAN_FILES = {
    "byte order mark": b"\xef\xbb\xbf" + encode(CLEAN),
    "CRLF": encode([ask(f"Say:\r\n{row['question']}", row["answer"]) for row in CLEAN], "\r\n"),
    "languages": encode([chat(*turns) for turns in SPOKEN]),
    "decomposed Hangul": encode([chat(*(unicodedata.normalize("NFD", text) for text in SPOKEN[0]))]),
    "tools and code": encode([AGENT, chat("Hi", CODE, system="Answer &mdash; in HTML.")]),
    "one character": encode([ask(f"{n} + 1 < 5? A or B", "AB"[n % 2]) for n in range(40)]),
    "one megabyte": encode([chat("Repeat it: " + "long words " * 90_000, "So it is repeated.")]),
}


@pytest.mark.parametrize("name", CLEAN_FILES)
def test_a_clean_file_of_an_unusual_kind_raises_no_alarm(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(CLEAN_FILES[name])
    assert find(tmp_path / "rows.jsonl") == []


def test_transcripts_of_dialogues_raise_no_alarm(tmp_path: Path) -> None:
    start = "\n\nHuman: What is {n} + {n}?\n\nAssistant: Why?\n\nHuman: I forgot.\n\nAssistant:"
    rows = []
    for n in range(30):
        asked = start.replace("{n}", str(n))
        rows.append({"chosen": f"{asked} It is {2 * n}.", "rejected": f"{asked} I don't know."})
    assert find(save(tmp_path, rows), have_pairs=True) == []


def test_real_problems_and_their_solutions_raise_no_alarm(shared_data: SharedData) -> None:
    assert find(shared_data.gsm8k / "train.jsonl") == []
    assert find(shared_data.gsm8k / "test.jsonl") == []


def test_real_news_have_no_finding_once_the_recipe_has_cleaned_them(
    tmp_path: Path, shared_data: SharedData
) -> None:
    for name in ("train", "test"):
        pairs = read_aligned(shared_data.news / f"{name}.ko", shared_data.news / f"{name}.en")
        drops = DropRecorder()
        rows = filtered_translation_rows(TranslationRecipe(), pairs, drops, TranslationReport())
        kept = drop_duplicates(rows, drops, RowFormat.messages)
        assert find(save(tmp_path, [row for _, row in kept])) == []
