"""The numbers of a result that tracking services receive."""

from datetime import UTC, datetime
from typing import Any

from tests.integration.app.stored_evaluations import METRIC, make_difference, make_result
from workers.tracking.protocol import AttemptEnd, result_metrics


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    return result_metrics(AttemptEnd(status="succeeded", step=1, time=datetime.now(UTC), result=result))


def test_the_scores_of_an_evaluation_have_clear_names_with_n_and_bounds() -> None:
    differences = [make_difference("model", "baseline", 0.25)]
    result = make_result({"model": [1, 1, 0, 1], "baseline": [0, 1, 0, 1]}, differences=differences)
    metrics = metrics_of(result.model_dump(mode="json"))
    name, difference = f"result.model.{METRIC}", f"result.model.minus.baseline.{METRIC}"
    assert (metrics[name], metrics[f"{name}.n"], metrics[f"{name}.failed"]) == (0.75, 4, 0)
    assert (metrics[f"{name}.low_95"], metrics[f"{name}.high_95"]) == (0.1, 0.9)
    assert (metrics[difference], metrics[f"{difference}.p_adjusted"]) == (0.25, 0.6)
    assert metrics[f"{difference}.low_95"] == -0.5


def test_the_numbers_of_another_result_have_their_dotted_names() -> None:
    assert metrics_of({"stage": "sft", "metrics": {"loss": 0.5}, "ok": True}) == {"result.metrics.loss": 0.5}
