"""F1 and ROUGE-L equal independent computations: SQuAD's script, rouge-score's own scorer, a naive LCS."""

import re
import string
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tests.unit.trainers.metrics.general.conftest import make_row
from trainers.configs.metrics.general import RougeL, TextUnit, TokenF1
from trainers.metrics.general.overlap import MAX_ROUGE_TOKENS, RougeLMetric, TokenF1Metric

ENGLISH = st.lists(
    st.sampled_from(["The", "a cat", "sat,", "on", "the", "mat!", "an", "U.S.", "running", "it's", "42"])
).map(" ".join)


def squad_f1(prediction: str, truth: str) -> float:
    """Return `f1_score` of evaluate-v1.1.py, with the rule of v2.0 for texts without tokens."""

    def normalize(text: str) -> list[str]:
        text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    found, expected = normalize(prediction), normalize(truth)
    same = sum((Counter(found) & Counter(expected)).values())
    if not found or not expected:
        return float(found == expected)
    if same == 0:
        return 0
    precision, recall = same / len(found), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def naive_rouge_l(response: str, reference: str) -> float:
    """Return the F-measure of ROUGE-L by recursion, over white space."""
    found, expected = response.split(), reference.split()

    @cache
    def lcs(i: int, j: int) -> int:
        if i == len(found) or j == len(expected):
            return 0
        if found[i] == expected[j]:
            return 1 + lcs(i + 1, j + 1)
        return max(lcs(i + 1, j), lcs(i, j + 1))

    common = lcs(0, 0)
    return 2 * common / (len(found) + len(expected)) if common else 0.0


def f1(response: str, reference: str, unit: TextUnit = TextUnit.words) -> float:
    return TokenF1Metric(TokenF1(unit=unit)).score([make_row(response, reference)]).value


def rouge_l(response: str, reference: str, **options: object) -> float:
    return RougeLMetric(RougeL(**options)).score([make_row(response, reference)]).value


@given(ENGLISH, ENGLISH)
def test_f1_of_english_is_that_of_squads_script(response: str, reference: str) -> None:
    assert f1(response, reference) == pytest.approx(squad_f1(response, reference))


def test_f1_of_korean_keeps_words_and_removes_its_punctuation() -> None:
    assert f1("《서울》은 수도다。", "서울은 수도다") == 1
    assert f1("서울은 수도이다", "서울은 수도다") == 0.5


def test_hangul_in_parts_equals_composed_hangul() -> None:
    assert f1("서울", "서울") == 1 == rouge_l("서울", "서울")


def test_f1_of_characters_counts_particles_less() -> None:
    assert f1("서울은", "서울", TextUnit.characters) == pytest.approx(2 * 2 / 5)


@given(ENGLISH, ENGLISH, st.booleans())
def test_rouge_l_of_english_is_that_of_rouge_score(response: str, reference: str, stemmer: bool) -> None:
    expected = RougeScorer(["rougeL"], use_stemmer=stemmer).score(reference, response)["rougeL"].fmeasure
    assert rouge_l(response, reference, stemmer=stemmer) == pytest.approx(expected)


@given(
    *[st.lists(st.sampled_from(["나는", "학교에", "어제", "갔다", "친구와"]), max_size=8).map(" ".join)] * 2
)
def test_rouge_l_of_korean_is_the_longest_common_subsequence(response: str, reference: str) -> None:
    assert rouge_l(response, reference) == pytest.approx(naive_rouge_l(response, reference))


def test_rouge_scores_own_tokenizer_loses_korean() -> None:
    """The reason for another tokenizer, which the signature names."""
    assert RougeScorer(["rougeL"]).score("나는 갔다", "나는 갔다")["rougeL"].fmeasure == 0
    values = RougeLMetric(RougeL()).score([make_row("나는 갔다", "나는 갔다")])
    assert values.value == 1
    assert values.signature == "rouge_l|tok:unicode-words|stem:no|version:rouge-score-0.1.2"


def test_an_endless_response_is_cut_and_counted() -> None:
    metric = RougeLMetric(RougeL(unit=TextUnit.characters))
    values = metric.score([make_row("가" * (MAX_ROUGE_TOKENS + 1), "가나")])
    assert values.details == {"truncated_texts": 1}


def test_a_row_without_a_reference_cannot_be_scored() -> None:
    assert TokenF1Metric(TokenF1()).check_row(make_row(reference=" ")) == "has no reference"
    assert f1("", "reference") == 0
