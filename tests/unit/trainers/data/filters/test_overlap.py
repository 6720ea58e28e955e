import json
import unicodedata
from pathlib import Path

import pytest

from trainers.data.filters.overlap import find_overlap
from trainers.data.fingerprint import row_text

LONG = "A farmer with four fields sows two of them with wheat, and the rest with barley. How many are barley?"


def save(path: Path, *questions: str, answer: str = "a") -> Path:
    path.write_text("".join(json.dumps({"question": q, "answer": answer}) + "\n" for q in questions))
    return path


def test_test_rows_are_found_exactly_and_nearly_with_both_lines(tmp_path: Path) -> None:
    train = save(tmp_path / "train.jsonl", "Other?", LONG, LONG.replace("farmer", "peasant"), "Same?")
    test = save(tmp_path / "test.jsonl", "Same?", "Unseen entirely?", LONG, answer="another")
    report = find_overlap(train, test)
    found = [(overlap.test_line, overlap.train_line, overlap.is_exact) for overlap in report.first]
    assert found == [(3, 2, True), (3, 3, False), (1, 4, True)]
    assert (report.test_rows, report.train_rows, report.overlaps) == (3, 4, 3)
    assert (report.exact_test_rows, report.near_test_rows) == (2, 0)
    assert 0.8 <= report.first[1].similarity < report.first[0].similarity == 1


KOREAN = "사과 12개를 세 명이 똑같이 나누면 한 명은 몇 개를 받을까?"


@pytest.mark.parametrize(
    "written",
    [
        unicodedata.normalize("NFD", KOREAN),
        KOREAN.replace("?", "？").replace("12", "１２"),
        KOREAN.replace(" ", "\u00a0"),
        KOREAN + "\u200b\r\n",
    ],
    ids=["decomposed", "fullwidth", "no-break", "zero-width"],
)
@pytest.mark.parametrize("exact_only", [True, False])
def test_a_test_row_is_found_however_its_characters_are_encoded(
    tmp_path: Path, written: str, exact_only: bool
) -> None:
    train, test = save(tmp_path / "train.jsonl", written), save(tmp_path / "test.jsonl", KOREAN)
    report = find_overlap(train, test, exact_only=exact_only, same_numbers=True)
    assert (report.exact_test_rows, report.near_test_rows, report.first[0].is_exact) == (1, 0, True)


def test_files_without_a_common_row_overlap_in_nothing(tmp_path: Path) -> None:
    report = find_overlap(save(tmp_path / "a.jsonl", LONG), save(tmp_path / "b.jsonl", "Unseen?"))
    assert (report.overlaps, report.first, report.exact_test_rows) == (0, [], 0)


def test_whole_rows_are_compared_when_asked(tmp_path: Path) -> None:
    train = save(tmp_path / "train.jsonl", "What is it?", answer="Nothing like the other answer at all.")
    test = save(tmp_path / "test.jsonl", "What is it?", answer="A lighthouse.")
    assert find_overlap(train, test).exact_test_rows == 1
    assert find_overlap(train, test, text_of=row_text).overlaps == 0


def test_the_two_files_may_be_written_in_different_formats(tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": LONG}]
    chat.write_text(json.dumps({"messages": [*messages, {"role": "assistant", "content": "2"}]}) + "\n")
    assert find_overlap(chat, save(tmp_path / "test.jsonl", LONG)).exact_test_rows == 1


def test_only_the_first_overlaps_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    train, test = save(tmp_path / "a.jsonl", *[LONG] * 5), save(tmp_path / "b.jsonl", LONG)
    report = find_overlap(train, test, limit=2)
    assert (len(report.first), report.overlaps, report.exact_test_rows) == (2, 5, 1)


def test_a_row_of_no_known_format_is_named(tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"words": "a"}\n')
    with pytest.raises(ValueError, match=r"odd\.jsonl, line 1"):
        find_overlap(odd, save(tmp_path / "b.jsonl", LONG))
