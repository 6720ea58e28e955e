"""Length, language and numbers of translations against independent computations and labels."""

import unicodedata
from fractions import Fraction
from typing import Any

import pytest

from tests.shared_data import SharedData
from trainers.configs.metrics.translation import LengthRatio, NumbersKept, WrongLanguage
from trainers.configs.rewards import TargetLanguage
from trainers.data.recipes.translation import WORDINGS, extract_source
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.metrics.table import make_metric
from trainers.metrics.translation.languages import is_in_language
from trainers.metrics.translation.number_values import find_number_words, find_numbers


def score(config: Any, texts: list[tuple[str, str | None, str]]) -> MetricValues:
    return make_metric(config).score(
        [
            EvaluatedRow(row, [{"role": "user", "content": source}], reference, (response,))
            for row, (source, response, reference) in enumerate(texts, start=1)
        ]
    )


def test_length_ratio_is_that_of_the_sums() -> None:
    texts: list[tuple[str, str | None, str]] = [("", "abcd", "ab"), ("", "abc", "abcdef"), ("", None, "ab")]
    values = score(LengthRatio(), texts)
    assert values.row_values == [0.5, 0.5, 0]
    assert values.details["ratio"] == 7 / 10 == values.value
    assert score(LengthRatio(), [("", "abcdef", "abc")]).details["ratio"] == 2


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("고양이가 앉았다", {"ko"}),
        ("The cat sat", {"en"}),
        ("猫がマットの上に座った", {"ja"}),
        ("猫坐在垫子上", {"zh", "ja"}),
        ("Кот сидел", {"other"}),
        ("BBC가 보도했다", {"ko"}),
        ("2008. 5. 18.", None),
    ],
)
def test_language_is_that_of_the_script(text: str, languages: set[str] | None) -> None:
    found = {language.value for language in TargetLanguage if is_in_language(text, language)}
    assert found == (languages or set())
    assert (is_in_language(text, TargetLanguage.ko) is None) == (languages is None)


def test_share_of_wrong_language_counts_responses_that_are_not_in_it() -> None:
    reference = "고양이가 매트 위에 앉았다."
    texts = [
        ("The cat sat.", reference, reference),
        ("The cat sat.", "The cat sat.", reference),
        ("The cat sat.", None, reference),
        ("5/18/2008", "2008. 5. 18.", "2008. 5. 18."),
    ]
    values = score(WrongLanguage(), texts)
    assert values.row_values == [0, 1, 1, None]
    assert values.value == pytest.approx(2 / 3) and not values.higher_is_better and values.is_share
    assert values.details["language"] == "ko" and values.details["rows"] == [2, 3]
    assert score(WrongLanguage(language=TargetLanguage.en), texts).row_values == [1, 0, 1, None]


def test_scripts_agree_with_the_names_of_unicode(shared_data: SharedData) -> None:
    lines = [
        line
        for name in ("ko", "en")
        for line in (shared_data.news / f"test.{name}").read_text("utf-8").splitlines()[:300]
    ]
    for line in lines:
        names = [unicodedata.name(letter, "") for letter in line if letter.isalpha()]
        share = sum(name.startswith("HANGUL") for name in names) / max(1, len(names))
        assert is_in_language(line, TargetLanguage.ko) == (share >= 0.3 if names else None)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("13억 5천만 달러", [1_350_000_000]),
        ("$1.35 billion, or 1.35bn", [1_350_000_000]),
        ("2008년 5월 18일 2만여 명", [2008, 5, 18, 20000]),
        ("오후 12:30", [12, 30]),
        ("the 21st of May, 3.5%", [21, Fraction(7, 2)]),
        ("no number", []),
    ],
)
def test_numbers_are_found_by_value(text: str, numbers: list[Any]) -> None:
    assert find_numbers(text) == set(map(Fraction, numbers))


def test_number_words_are_found_by_value() -> None:
    text = "In May, twenty-five people and two million won; the third."
    assert {5, 25, 2_000_000, 3} <= find_number_words(text)
    assert not find_number_words("The cat sat on the mat.")
    assert max(find_number_words("million " * 10_000)) <= 10**60


def test_numbers_kept_is_the_share_of_the_sources_numbers() -> None:
    reference = "On May 18, 2008, some 20,000 people came."
    source = "2008년 5월 18일 2만여 명이 왔다."
    texts = [
        (source, reference, reference),
        (source, "On May 18, 2008, 2,000 people came.", reference),
        (source, None, reference),
        ("많은 사람이 왔다.", "5 people came.", "Many people came."),
    ]
    values = score(NumbersKept(), texts)
    assert values.row_values == [1, 0.75, 0, None]
    assert values.value == pytest.approx(1.75 / 3) and values.details["references"] == 1


def test_source_is_found_in_the_requests_of_the_recipe() -> None:
    for wordings in WORDINGS.values():
        for wording in wordings:
            assert extract_source(wording.replace("{text}", "고양이가\n\n앉았다.")) == "고양이가\n\n앉았다."
            assert extract_source(wording.replace("{text}", "")) is None
    assert extract_source("Translate: 고양이") is None
