"""Strict and flexible accuracy, pass@k, the majority vote, and math-verify on text that attacks it."""

import itertools
from fractions import Fraction

import pytest

from trainers.configs.metrics import MajorityAtK, MathsExactMatch, MathsStrictMatch, MathVerify, PassAtK
from trainers.configs.rewards import AnswerForm
from trainers.metrics.maths.samples import estimate_pass_at_k
from trainers.metrics.maths.verification import Verdict, judge_all
from trainers.metrics.metric import EvaluatedRow
from trainers.metrics.table import make_metric
from trainers.runtime.errors import ConfigInvalid


def evaluated(reference: str, *responses: str | None, row: int = 1) -> EvaluatedRow:
    return EvaluatedRow(row, [{"role": "user", "content": "?"}], reference, responses)


@pytest.mark.parametrize(
    ("response", "strict", "flexible"),
    [
        ("4 + 4 = 8\n#### 8", 1.0, 1.0),
        (r"so \boxed{8}", 1.0, 1.0),
        ("The answer is 8.", 0.0, 1.0),
        ("8", 0.0, 1.0),
        ("#### 9, no: 8", 0.0, 0.0),
        (r"the last is \boxed{8", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_strict_accuracy_needs_the_form_and_flexible_accuracy_the_number(
    response: str, strict: float, flexible: float
) -> None:
    rows = [evaluated("#### 8", response)]
    assert make_metric(MathsStrictMatch()).score(rows).value == strict
    assert make_metric(MathsExactMatch()).score(rows).value == flexible


def test_a_single_form_refuses_the_other_and_counts_right_answers_without_it() -> None:
    metric = make_metric(MathsStrictMatch(form=AnswerForm.hashes))
    found = metric.score([evaluated("#### 8", r"\boxed{8}"), evaluated("#### 8", "#### 8")])
    assert found.row_values == [0.0, 1.0]
    assert found.details == {"without_form": 1, "right_without_form": 1}
    assert found.signature == "maths_strict_match|form:hashes"


def test_pass_at_k_equals_the_share_of_all_subsets_with_a_right_sample() -> None:
    for n, k in ((1, 1), (5, 1), (5, 3), (6, 6)):
        for correct in range(n + 1):
            samples = [True] * correct + [False] * (n - correct)
            subsets = list(itertools.combinations(samples, k))
            share = Fraction(sum(map(any, subsets)), len(subsets))
            assert estimate_pass_at_k(n, correct, k) == pytest.approx(float(share), abs=1e-12)


def test_pass_at_k_estimates_each_row_and_is_a_share_with_exactly_k_samples() -> None:
    rows = [evaluated("#### 8", "8", "9", "8", None), evaluated("#### 8", "1", "2", "3", "4", row=2)]
    found = make_metric(PassAtK(k=2)).score(rows)
    assert found.row_values == pytest.approx([1 - 1 / 6, 0.0])
    assert not found.is_share
    assert make_metric(PassAtK(k=4)).score(rows).is_share
    assert make_metric(PassAtK(k=4, strict=True)).score(rows).value == 0.0


def test_fewer_samples_than_k_are_an_error_with_the_remedy() -> None:
    with pytest.raises(ConfigInvalid, match="pass_at_k needs 2 samples of each row; row 1 has 1") as error:
        make_metric(PassAtK(k=2)).score([evaluated("#### 8", "8")])
    assert "Set `samples` to at least 2" in str(error.value.hint)


@pytest.mark.parametrize(
    ("responses", "value", "ties"),
    [
        (("8", "9", "8.0"), 1.0, 0),
        (("9", "8", "9"), 0.0, 0),
        (("8", "9", "none"), 1.0, 1),
        (("9", "8", None), 0.0, 1),
        (("none", "", "-"), 0.0, 0),
        (("9", "8", "7", "8", "8"), 0.0, 1),
    ],
)
def test_majority_vote_breaks_ties_by_the_first_sample(
    responses: tuple[str | None, ...], value: float, ties: int
) -> None:
    found = make_metric(MajorityAtK(k=3)).score([evaluated("#### 8", *responses)])
    assert (found.value, found.details["ties"], found.is_share) == (value, ties, True)


def test_math_verify_lists_its_disagreements_and_judges_formulas() -> None:
    rows = [
        evaluated("#### 1/2", r"so \boxed{\frac{1}{2}}", row=1),
        evaluated("$(x+1)^2$", "$x^2 + 2x + 1$", row=2),
        evaluated("#### 7", "#### 8", row=3),
        evaluated("#### none", "#### 8", row=4),
    ]
    found = make_metric(MathVerify()).score(rows)
    assert found.row_values == [1.0, 1.0, 0.0, None]
    assert found.details["disagreeing_rows"] == [
        {"row": 2, "math_verify": "right", "maths_exact_match": False}
    ]
    assert found.details["references_not_parsed"] == 1
    assert "math_verify|version:" in found.signature


def test_hostile_text_costs_math_verify_a_child_and_not_the_evaluation() -> None:
    endless = r"$9^{9^{9^{9^9}}}$"
    pairs = [("#### 3", "#### 3"), (endless, "#### 3"), ("\x00\ud800 3", "#### 3")]
    assert judge_all(pairs, cpu_seconds=0.5) == [Verdict.right, Verdict.limit, Verdict.right]
