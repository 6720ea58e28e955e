"""Graders of texts against OpenAI's documented examples, the libraries themselves and values by hand."""

from typing import Any

import pytest
from rapidfuzz import fuzz, utils
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu

from trainers.configs.graders import GRADER
from trainers.graders.grade import grade, grader_signature
from trainers.graders.result import GradeResult, Sample

REFERENCE, TEXT = "fuzzy wuzzy had no hair", "fuzzy wuzzy was a bear"
KOREAN = "대한민국의 수도는 서울입니다", "대한민국의 수도는 부산입니다"
MULTI = {
    "type": "multi",
    "graders": {
        "name": {
            "name": "name_grader",
            "type": "text_similarity",
            "input": "{{sample.output_json.name}}",
            "reference": "{{item.name}}",
            "evaluation_metric": "fuzzy_match",
            "pass_threshold": 0.9,
        },
        "email": {
            "name": "email_grader",
            "type": "string_check",
            "input": "{{sample.output_json.email}}",
            "reference": "{{item.email}}",
            "operation": "eq",
        },
    },
    "calculate_output": "(name + email) / 2",
}
PERSON = {"name": "John Doe", "email": "john.doe@gmail.com"}


def run(config: dict[str, Any], completion: str, **item: Any) -> GradeResult:
    return grade(GRADER.validate_python(config), item, Sample(completion))


def check(operation: str, text: str, reference: str) -> float | None:
    config = {"type": "string_check", "name": "check", "operation": operation}
    return run(
        config | {"input": "{{sample.output_text}}", "reference": "{{item.label}}"}, text, label=reference
    ).score


def similarity(metric: str, text: str, reference: str) -> float:
    config = {"type": "text_similarity", "name": "similar", "evaluation_metric": metric}
    result = run(
        config | {"input": "{{sample.output_text}}", "reference": "{{item.ref}}"}, text, ref=reference
    )
    assert result.score is not None
    return result.score


@pytest.mark.parametrize(
    ("operation", "text", "reference", "score"),
    [
        ("eq", "Seoul", "Seoul", 1),
        ("eq", "Seoul", "seoul", 0),
        ("ne", "Seoul", "seoul", 1),
        ("ne", "Seoul", "Seoul", 0),
        ("like", "It is Seoul.", "Seoul", 1),
        ("like", "It is Seoul.", "seoul", 0),
        ("like", "Seoul", "It is Seoul.", 0),
        ("ilike", "IT IS SEOUL.", "seoul", 1),
        ("ilike", "straße", "STRASSE", 1),
        ("ilike", "서울", "부산", 0),
    ],
)
def test_a_string_check_is_0_or_1(operation: str, text: str, reference: str, score: float) -> None:
    assert check(operation, text, reference) == score


@pytest.mark.parametrize(
    ("text", "reference"), [(TEXT, REFERENCE), KOREAN, ("The cat", "the cat sat on the mat")]
)
def test_a_similarity_is_what_its_library_computes(text: str, reference: str) -> None:
    expected = fuzz.WRatio(text, reference, processor=utils.default_process) / 100
    assert similarity("fuzzy_match", text, reference) == expected
    bleu = sentence_bleu(text, [reference], smooth_method="exp", use_effective_order=True).score / 100
    assert similarity("bleu", text, reference) == pytest.approx(bleu)


def test_rouge_of_ascii_is_that_of_the_package() -> None:
    kinds = {f"rouge_{n}": f"rouge{n}" for n in range(1, 6)} | {"rouge_l": "rougeL"}
    scores = RougeScorer(list(kinds.values())).score(REFERENCE, TEXT)
    for name, kind in kinds.items():
        assert similarity(name, TEXT, REFERENCE) == pytest.approx(scores[kind].fmeasure)
    assert similarity("rouge_1", *KOREAN) == pytest.approx(2 / 3)  # The package's own tokens have no Hangul.


def test_gleu_and_meteor_are_values_by_hand() -> None:
    # Of the 5+4+3+2 n-grams of both sides, `fuzzy`, `wuzzy` and their pair are equal.
    assert similarity("gleu", TEXT, REFERENCE) == pytest.approx(3 / 14)
    # Two of five words in one chunk: F = 0.4, penalty 0.5 (1/2)^3 (Lavie and Agarwal 2007).
    assert similarity("meteor", TEXT, REFERENCE) == pytest.approx(0.4 * (1 - 0.5 / 8))
    # The stage of stems finds `cats` for `cat`; that of synonyms would need WordNet, and is left out.
    assert similarity("meteor", "cats", "cat") == pytest.approx(0.5)
    assert similarity("meteor", "car", "automobile") == 0


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_5", "rouge_l"])
def test_empty_and_endless_texts_have_a_score(metric: str) -> None:
    assert similarity(metric, "", "a b") == 0
    assert 0 <= similarity(metric, "a b " * 100_000, "b a " * 100_000) <= 1


def test_a_formula_combines_the_scores_as_in_the_documented_example() -> None:
    result = run(MULTI, '{"name": "Jon Doe", "email": "john.doe@gmail.com"}', **PERSON)
    name = fuzz.WRatio("Jon Doe", "John Doe", processor=utils.default_process) / 100
    assert result.sub_scores == {"name": name, "email": 1.0}
    assert result.score == pytest.approx((name + 1) / 2) and result.passed is False
    assert run(MULTI, '{"name": "John Doe", "email": "john.doe@gmail.com"}', **PERSON).passed is True


def test_a_row_without_a_field_is_an_error_and_not_a_zero() -> None:
    result = run(MULTI, '{"name": "John Doe", "email": "e"}', name="John Doe")
    assert result.score is None and result.passed is None
    assert result.errors.names == ["invalid_variable_error"]
    assert "email: `{{ item.email }}` has no value" in result.reason


@pytest.mark.parametrize("completion", ["no JSON", '{"name": "John Doe"}', "[]"])
def test_a_completion_without_the_form_is_told_from_a_faulty_row(completion: str) -> None:
    result = run(MULTI, completion, **PERSON)
    assert result.score is None and result.errors.names == ["sample_parse_error"]
    assert result.is_completion_fault


def test_a_formula_without_a_value_is_an_error_of_the_row() -> None:
    result = run(
        MULTI | {"calculate_output": "name / (email - 1)"}, '{"name": "", "email": "e"}', name="", email="e"
    )
    assert result.score is None and result.errors.names == ["formula_parse_error"]
    assert "division by zero" in result.reason


def test_a_signature_changes_with_all_that_a_score_depends_on() -> None:
    variants = [
        MULTI,
        MULTI | {"calculate_output": "name"},
        MULTI["graders"]["name"],  # type: ignore[index]
        MULTI["graders"]["name"] | {"evaluation_metric": "bleu"},  # type: ignore[index]
        MULTI["graders"]["name"] | {"reference": "{{item.nickname}}"},  # type: ignore[index]
    ]
    signatures = [grader_signature(GRADER.validate_python(one)) for one in variants]
    assert len(set(signatures)) == len(variants)
    assert "rapidfuzz-" in signatures[0] and "sacrebleu-" in signatures[3]
