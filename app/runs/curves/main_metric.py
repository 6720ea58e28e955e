"""The summary of a run's metrics, and the one value that says most about its outcome."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from app.tables import Run

# A program chooses the names of its metrics; the summary must not grow without a bound.
MAX_SUMMARIZED_METRICS = 100


class MetricChoice(StrEnum):
    """Which value of a metric is shown."""

    lowest = "lowest"
    highest = "highest"
    last = "last"
    result = "result"


class MetricSummaryView(BaseModel):
    """The last and the extreme values of a metric of a run, over all of its attempts."""

    last: float = Field(description="The last value.")
    last_step: int = Field(description="Its step.")
    lowest: float = Field(description="The lowest value.")
    lowest_step: int = Field(description="The first step with it.")
    highest: float = Field(description="The highest value.")
    highest_step: int = Field(description="The first step with it.")


class MainMetricView(BaseModel):
    """The value that says most about the outcome of a run."""

    name: str = Field(description="Name of the metric, such as `validation_loss`.")
    value: float = Field(description="The value.")
    step: int | None = Field(description="Its step; null for the score of an evaluation.")
    choice: MetricChoice = Field(
        description="Which value of the metric it is: the lowest, the highest, the last, or a result."
    )
    is_lower_better: bool = Field(False, exclude=True)
    """For the order of jobs. Views of evaluations have the direction of their scores."""


# The first one that a run has logged. A training loss is noisy: its lowest value means nothing.
PREFERRED = (
    ("validation_loss", MetricChoice.lowest),
    ("reward", MetricChoice.highest),
    ("loss", MetricChoice.last),
)


def choose_value(name: str) -> MetricChoice:
    """Return which value of a metric is its best: by its name, as programs choose the names."""
    if name in dict(PREFERRED):
        return dict(PREFERRED)[name]
    plain = name.removeprefix("validation_")
    if plain.endswith(("loss", "perplexity")):
        return MetricChoice.lowest
    if plain.startswith("reward") or plain.endswith("accuracy"):
        return MetricChoice.highest
    return MetricChoice.last


def extend_summary(
    summary: Mapping[str, Any], values: Mapping[str, float | None], step: int
) -> dict[str, dict[str, float | int]]:
    """Return a summary that includes the values of one more step; those that are not finite do not count."""
    extended = dict(summary)
    for name, value in values.items():
        if value is None or not math.isfinite(value):
            continue
        if (before := extended.get(name)) is None:
            if len(extended) >= MAX_SUMMARIZED_METRICS:
                continue
            before = {"lowest": value, "lowest_step": step, "highest": value, "highest_step": step}
        after = {**before, "last": value, "last_step": step}
        if value < before["lowest"]:
            after |= {"lowest": value, "lowest_step": step}
        if value > before["highest"]:
            after |= {"highest": value, "highest_step": step}
        extended[name] = after
    return extended


def find_main_metric(run: Run) -> MainMetricView | None:
    """Return the first score of an evaluation's first model, or the best value that training has logged."""
    if (score := _find_score(run.result)) is not None:
        return score
    for name, choice in PREFERRED:
        if (of_metric := (run.metrics or {}).get(name)) is not None:
            return MainMetricView(
                name=name,
                value=of_metric[choice],
                step=of_metric[f"{choice}_step"],
                choice=choice,
                is_lower_better=name.endswith("loss"),
            )
    return None


def _find_score(result: dict[str, Any] | None) -> MainMetricView | None:
    """Return the score in a result, which is of a program and therefore not trusted."""
    match result:
        case {
            "models": [
                {"scores": [{"metric": str(name), "value": int() | float() as value} as score, *_]},
                *_,
            ]
        }:
            if math.isfinite(value):
                return MainMetricView(
                    name=name,
                    value=value,
                    step=None,
                    choice=MetricChoice.result,
                    is_lower_better=score.get("higher_is_better") is False,
                )
    return None
