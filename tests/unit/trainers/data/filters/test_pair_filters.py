import pytest

from trainers.data.files.aligned import TranslationPair
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_filters import (
    drop_identical_sides,
    filter_by_language,
    filter_by_length_ratio,
)

GOOD = TranslationPair(1, "삼성전자(Samsung)는 어제 말했다.", "Samsung said so yesterday — naïvely.")


@pytest.mark.parametrize(
    ("korean", "english", "reason"),
    [
        ("This was left as it was.", "This was left as it was.", "wrong_language"),
        ("안녕하세요", "안녕하세요", "wrong_language"),
        ("これは日本語です", "This is Japanese.", "wrong_language"),
        ("러시아어", "Это по-русски", "wrong_language"),
        (" ", "Hello", "empty_side"),
        ("안녕", "", "empty_side"),
    ],
)
def test_a_side_in_another_script_or_empty_is_dropped_with_its_line(
    korean: str, english: str, reason: str
) -> None:
    drops = DropRecorder()
    assert list(filter_by_language([GOOD, TranslationPair(7, korean, english)], drops)) == [GOOD]
    assert [(drop.line, drop.reason) for drop in drops.report().first] == [(7, reason)]


def test_a_pair_without_letters_is_not_judged_by_its_script() -> None:
    pair = TranslationPair(1, "2007. 5. 1.", "5/1/2007")
    assert list(filter_by_language([pair], DropRecorder())) == [pair]


def test_pairs_of_very_different_length_are_dropped() -> None:
    drops = DropRecorder()
    pairs = [GOOD, TranslationPair(2, "번역 :", "A long sentence that is no translation of a label.")]
    pairs.append(TranslationPair(3, "그는 어제 집으로 돌아갔다고 여러 번 말했다.", "said he."))
    assert list(filter_by_length_ratio(pairs, drops)) == [GOOD]
    assert [drop.line for drop in drops.report().first] == [2, 3]
    assert "the range is 0.6 to 6.0" in drops.report().first[0].detail


def test_sides_that_are_the_same_text_are_dropped() -> None:
    drops = DropRecorder()
    pairs = [TranslationPair(1, "OK  computer", "ok computer"), GOOD]
    assert list(drop_identical_sides(pairs, drops)) == [GOOD]
    assert drops.report().counts == {"identical_sides": 1}
