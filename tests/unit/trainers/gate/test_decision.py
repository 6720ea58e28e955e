"""Goal: a gate decides as its config says, in the metric's direction, and states the values.

Method: stored evaluations whose values are written by hand, so that each decision can be computed on paper.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import CHRF

from trainers.configs.stages.evaluations.gate import GateConfig
from trainers.evaluation.results import EvaluationResult, ModelScores, Score
from trainers.evaluation.row_index import INDEX, ROWS, write_index
from trainers.gate.decision import GateDecision, decide
from trainers.runtime.errors import ConfigInvalid, ProgramError

N = 100
Values = Sequence[float | None]


def make_evaluation(folder: Path, higher_is_better: bool = True, **values: Values) -> Path:
    """Write an evaluation of models whose rows have these values, and return its folder."""
    folder.mkdir(exist_ok=True)
    n = len(next(iter(values.values())))
    with (folder / ROWS).open("w", encoding="utf-8") as file:
        for row in range(n):
            models = {
                role: {"responses": ["x"], "values": {"share": own[row]}} for role, own in values.items()
            }
            prompt = [{"role": "user", "content": str(row)}]
            file.write(
                json.dumps({"row": row + 1, "prompt": prompt, "reference": "x", "models": models}) + "\n"
            )
    write_index(folder / ROWS, folder / INDEX)
    scores = [
        ModelScores(role=role, model=role, scores=[make_score(own, higher_is_better)])
        for role, own in values.items()
    ]
    result = EvaluationResult(stage="evaluate", n=n, models=scores)
    (folder / "result.json").write_text(result.model_dump_json(), encoding="utf-8")
    return folder


def make_score(values: Values, higher_is_better: bool) -> Score:
    known = [value for value in values if value is not None]
    mean = sum(known) / max(1, len(known))
    return Score(metric="share", value=mean, interval_95=(mean - 0.1, mean + 0.1), n=len(known),
                 higher_is_better=higher_is_better, signature="s")  # fmt: skip


def share(n_right: int) -> list[float]:
    """Return the values of rows of which the first ones are right."""
    return [1.0] * n_right + [0.0] * (N - n_right)


def decide_on(folder: Path, **fields: Any) -> GateDecision:
    evaluation = {"folder": str(folder), "role": "model"}
    if isinstance(other := fields["against"], str):
        fields["against"] = {"folder": str(folder), "role": other}
    return decide(GateConfig.model_validate({"evaluation": evaluation, **fields}))


@pytest.mark.parametrize(
    ("on", "against", "margin", "met"),
    [
        ("value", 0.6, 0.0, True),
        ("value", 0.61, 0.0, False),
        ("value", 0.65, 0.05, True),
        ("bound", 0.5, 0.0, True),
        ("bound", 0.51, 0.0, False),
        ("bound", 0.55, 0.05, True),
    ],
)
def test_a_constant_is_compared_with_the_value_or_the_worse_end_of_its_interval(
    tmp_path: Path, on: str, against: float, margin: float, met: bool
) -> None:
    make_evaluation(tmp_path, model=share(60))
    assert decide_on(tmp_path, on=on, against=against, margin=margin).met is met


@pytest.mark.parametrize(
    ("on", "against", "met"), [("value", 0.6, True), ("value", 0.59, False), ("bound", 0.69, False)]
)
def test_where_lower_is_better_the_upper_end_decides(
    tmp_path: Path, on: str, against: float, met: bool
) -> None:
    make_evaluation(tmp_path, higher_is_better=False, model=share(60))
    assert decide_on(tmp_path, on=on, against=against).met is met


@pytest.mark.parametrize(
    ("baseline", "on", "margin", "met"),
    [
        (60, "value", 0.0, True),  # Equal is not worse.
        (60, "bound", 0.0, False),  # Equal is not better.
        (60, "test", 0.05, True),  # No row differs, so a true difference of 5 points is excluded.
        (61, "value", 0.0, False),
        (61, "value", 0.01, True),
        (53, "bound", 0.0, True),  # 7 wins and no loss: mid-p 0.008.
        (56, "test", 0.0, True),  # 4 wins and no loss: one-sided mid-p 0.031.
        (56, "bound", 0.0, False),  # Two-sided 0.063.
        (57, "test", 0.0, False),
        (40, "test", -0.1, True),  # 20 points better, and more than 10 for certain.
        (40, "test", -0.19, False),
    ],
)
def test_models_are_compared_on_their_rows(
    tmp_path: Path, baseline: int, on: str, margin: float, met: bool
) -> None:
    make_evaluation(tmp_path, model=share(60), baseline=share(baseline))
    decision = decide_on(tmp_path, on=on, against="baseline", margin=margin)
    assert (decision.met, decision.n) == (met, N)
    assert decision.difference == pytest.approx((60 - baseline) / N)


@pytest.mark.parametrize("against", [0.0, "baseline"])
def test_a_metric_that_applies_to_no_row_meets_no_gate(tmp_path: Path, against: float | str) -> None:
    make_evaluation(tmp_path / "e", model=[None] * N, baseline=[None] * N)
    decision = decide_on(tmp_path / "e", on="value", against=against)
    assert not decision.met
    assert "n = 0" in decision.message


def test_rows_of_one_cluster_count_once(tmp_path: Path) -> None:
    make_evaluation(tmp_path, model=share(60), baseline=share(53))
    assert decide_on(tmp_path, on="bound", against="baseline").met
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (tmp_path / "result.json").write_text(json.dumps({**result, "clusters": "document"}), encoding="utf-8")
    assert not decide_on(tmp_path, on="bound", against="baseline").met


def test_only_rows_that_both_evaluations_have_count(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "a", model=share(60))
    make_evaluation(tmp_path / "b", model=share(60)[:50])
    other = {"folder": str(tmp_path / "b"), "role": "model"}
    decision = decide_on(tmp_path / "a", against=other, on="value")
    assert (decision.n, decision.value, decision.other_value) == (50, 1.0, 1.0)
    assert "50 of 100 rows" in decision.warnings[0]


def test_the_message_has_the_values_and_the_limit(tmp_path: Path) -> None:
    make_evaluation(tmp_path, model=share(60), baseline=share(61))
    decision = decide_on(tmp_path, on="value", against="baseline")
    assert decision.message == (
        "share of model is 0.6, of baseline 0.61: a difference of -0.01 with n = 100 "
        "(95 % interval -0.0672 to 0.0401); the difference must be at least 0."
    )


@pytest.mark.parametrize("fields", [{"metric": "other"}, {"role": "other"}])
def test_what_the_evaluation_lacks_is_named(tmp_path: Path, fields: dict[str, str]) -> None:
    make_evaluation(tmp_path, model=share(60))
    evaluation = {"folder": str(tmp_path), "role": fields.pop("role", "model")}
    config = GateConfig.model_validate({"evaluation": evaluation, "against": 0.5, **fields})
    with pytest.raises(ProgramError, match="other"):
        decide(config)


def test_a_name_that_only_a_job_can_resolve_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        decide(GateConfig.model_validate({"evaluation": "evaluate", "against": 0.5}))


def test_a_metric_of_the_corpus_is_compared_as_one_if_a_model_writes_nothing(tmp_path: Path) -> None:
    references = [f"Sentence {n} is about {'very ' * (n % 7)}small houses." for n in range(40)]
    responses = {"model": [""] * 40, "baseline": [text.replace("small", "tiny") for text in references]}
    rows = [
        {
            "row": n + 1,
            "prompt": [{"role": "user", "content": str(n)}],
            "reference": text,
            "models": {
                role: {"responses": [own[n]], "values": {"chrf": score_chrf(text, own[n])}}
                for role, own in responses.items()
            },
        }
        for n, text in enumerate(references)
    ]
    (tmp_path / ROWS).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    write_index(tmp_path / ROWS, tmp_path / INDEX)
    corpus = {role: CHRF().corpus_score(own, [references]).score for role, own in responses.items()}
    scores = {
        role: Score(metric="chrf", value=value, interval_95=None, n=40, signature="s")
        for role, value in corpus.items()
    }
    models = [ModelScores(role=role, model=role, scores=[score]) for role, score in scores.items()]
    result = EvaluationResult(stage="evaluate", n=40, models=models, metrics=[{"metric": "chrf"}])
    (tmp_path / "result.json").write_text(result.model_dump_json(), encoding="utf-8")
    decision = decide_on(tmp_path, against="baseline", on="bound", metric="chrf")
    assert decision.value == 0 and decision.other_value is not None
    assert decision.difference == pytest.approx(-decision.other_value)


def score_chrf(reference: str, response: str) -> float:
    score: float = CHRF().sentence_score(response, [reference]).score
    return score
