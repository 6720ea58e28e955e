import json
import random
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest

from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.filters.held_out import drop_held_out
from trainers.data.filters.near_duplicates import NearDuplicateIndex, drop_near_duplicates, shingles
from trainers.data.filters.row_filters import drop_duplicates, filter_by_characters, filter_by_tokens
from trainers.data.formats import Row, RowFormat

QA = RowFormat.question_answer


def number_rows(*questions: str) -> list[tuple[int, Row]]:
    return [(line, {"question": text, "answer": "ab"}) for line, text in enumerate(questions, start=1)]


def lines(rows: Iterable[tuple[int, Row]]) -> list[int]:
    return [line for line, _ in rows]


def list_drops(drops: DropRecorder) -> list[tuple[int, str]]:
    return [(drop.line, drop.reason) for drop in drops.report().first]


def test_rows_are_kept_by_the_characters_of_all_their_turns() -> None:
    drops = DropRecorder()
    kept = filter_by_characters(number_rows("", "abc", "abcd", "x" * 99), drops, QA, minimum=5, maximum=8)
    assert lines(kept) == [2, 3]
    assert list_drops(drops) == [(1, DropReason.too_short), (4, DropReason.too_long)]
    assert drops.report().first[1].detail == "The row has 102 characters; the maximum is 8."


def test_rows_are_kept_by_tokens_as_the_caller_counts_them() -> None:
    drops = DropRecorder()
    rows = number_rows("one", "one two", "one two three")
    kept = filter_by_tokens(rows, drops, lambda row: len(row["question"].split()), minimum=2, maximum=2)
    assert lines(kept) == [2]
    assert list_drops(drops) == [(1, "too_short"), (3, "too_long")]


def test_duplicates_have_the_same_trained_content_whatever_their_other_fields() -> None:
    rows: list[tuple[int, Row]] = [
        (1, {"question": "q", "answer": "a", "id": 1}),
        (2, {"answer": "a", "question": "q", "id": 2}),
        (3, {"question": "q", "answer": "b"}),
        (4, {"question": "q", "answer": "a", "system": "s"}),
    ]
    drops = DropRecorder()
    assert lines(drop_duplicates(rows, drops, QA)) == [1, 3, 4]
    assert [drop.detail for drop in drops.report().first] == ["The row has the same content as line 1."]


def test_rows_that_look_the_same_are_duplicates() -> None:
    rows = number_rows(
        "사과 하나?", unicodedata.normalize("NFD", "사과 하나?"), "사과\u200b  하나？", "사과하나?"
    )
    assert lines(drop_duplicates(rows, DropRecorder(), QA)) == [1, 4]


def test_a_held_out_prompt_is_dropped_however_its_characters_are_encoded(tmp_path: Path) -> None:
    held_out = tmp_path / "test.jsonl"
    held_out.write_text(json.dumps({"question": "사과 하나?", "answer": "1"}))
    rows = number_rows(unicodedata.normalize("NFD", "사과 하나?"), "사과\u00a0하나?\r\n", "사과 둘?")
    assert lines(drop_held_out(rows, DropRecorder(), QA, [held_out])) == [3]


def test_pairs_with_exchanged_completions_are_not_duplicates() -> None:
    rows = [
        (1, {"prompt": "q", "chosen": "a", "rejected": "b"}),
        (2, {"prompt": "q", "chosen": "b", "rejected": "a"}),
    ]
    assert lines(drop_duplicates(rows, DropRecorder(), RowFormat.preference)) == [1, 2]


def test_a_full_memory_is_reported_and_still_finds_what_it_remembers() -> None:
    drops = DropRecorder()
    kept = drop_duplicates(number_rows("a", "b", "c", "c", "a"), drops, QA, max_remembered=2)
    assert lines(kept) == [1, 2, 3, 4]
    assert (drops.report().not_remembered, list_drops(drops)) == (2, [(5, "duplicate")])


def test_filters_chain_and_share_one_report() -> None:
    every: list[int] = []
    drops = DropRecorder(limit=1, write=lambda drop: every.append(drop.line))
    rows = drop_duplicates(number_rows(*"aabbcc", "x" * 50, "y" * 50), drops, QA)
    assert lines(filter_by_characters(rows, drops, QA, maximum=9)) == [1, 3, 5]
    report = drops.report()
    assert (report.dropped, report.counts) == (5, {"duplicate": 3, "too_long": 2})
    assert [drop.line for drop in report.first] == [2, 7]
    assert every == [2, 4, 6, 7, 8]


SENTENCE = (
    "The old lighthouse keeper walked down to the harbour every morning before the first boats came in."
)
KOREAN = "오래된 등대지기는 첫 배가 들어오기 전에 매일 아침 항구까지 천천히 걸어 내려가곤 했다고 합니다."


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SENTENCE, SENTENCE.replace("old", "tall")),
        (SENTENCE, "  " + SENTENCE.upper().replace(" ", "  ")),
        (KOREAN, KOREAN.replace("합니다", "한다")),
        (KOREAN, unicodedata.normalize("NFD", KOREAN.replace("합니다", "한다"))),
    ],
)
def test_texts_that_differ_in_little_are_near_duplicates(first: str, second: str) -> None:
    drops = DropRecorder()
    assert lines(drop_near_duplicates(number_rows(first, "Else.", second), drops, QA)) == [1, 2]
    assert list_drops(drops) == [(3, "near_duplicate")]
    assert "line 1" in drops.report().first[0].detail


def test_texts_on_different_things_are_kept() -> None:
    rows = number_rows(SENTENCE, KOREAN, "The harbour was closed.", "q", "r", "")
    assert lines(drop_near_duplicates(rows, DropRecorder(), QA)) == [1, 2, 3, 4, 5, 6]


def test_the_threshold_parts_texts_by_their_true_similarity() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(400)]
    original = " ".join(words)
    index = NearDuplicateIndex(0.8)
    index.add(1, original)
    for changed in (10, 20, 80, 120):
        other = " ".join([*words[:-changed], *reversed(words[:changed])])
        common, either = shingles(original) & shingles(other), shingles(original) | shingles(other)
        similarity = len(common) / len(either)
        assert bool(index.matches(other)) == (similarity > 0.8), (changed, similarity)


def test_the_memory_for_near_duplicates_is_bounded_and_reported() -> None:
    drops = DropRecorder()
    rows = number_rows(SENTENCE, KOREAN, KOREAN, SENTENCE)
    assert lines(drop_near_duplicates(rows, drops, QA, max_remembered=1)) == [1, 2, 3]
    assert drops.report().not_remembered == 2


@pytest.mark.parametrize("threshold", [0, 1.1])
def test_a_threshold_outside_its_range_is_rejected(threshold: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        NearDuplicateIndex(threshold)
