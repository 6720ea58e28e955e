"""The metrics of each step of a fine-tuning job, in OpenAI's names, and the CSV file of results."""

import csv
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from sqlalchemy import select
from sqlmodel import Session, col

from app.tables import Event, EventType

# Ours by OpenAI's, in the order of preference: DPO's accuracy is the share of pairs that it ranks right.
NAMES = {
    "train_loss": ("loss",),
    "train_mean_token_accuracy": ("rewards/accuracies", "mean_token_accuracy"),
    "valid_loss": ("validation_loss",),
    "valid_mean_token_accuracy": ("validation_rewards/accuracies", "validation_mean_token_accuracy"),
    "train_mean_reward": ("reward",),
    "valid_mean_reward": ("validation_reward",),
}
COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}
REWARD_COLUMNS = {"train_mean_reward": "train_mean_reward", "valid_mean_reward": "valid_mean_reward"}

StepMetrics = dict[int, dict[str, float]]


def read_step_metrics(session: Session, run_id: str) -> StepMetrics:
    """Return the metrics of a run by step; a step that was repeated after a stop has its last values."""
    events = select(col(Event.step), col(Event.data)).where(
        col(Event.run_id) == run_id, col(Event.type) == EventType.metrics
    )
    steps: StepMetrics = {}
    for step, data in session.execute(events.order_by(col(Event.seq))):
        if step is not None:
            steps.setdefault(step, {}).update(name_metrics(data))
    return dict(sorted(steps.items()))


def name_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that OpenAI has as well, under its names."""
    found = {
        name: next((values[own] for own in ours if values.get(own) is not None), None)
        for name, ours in NAMES.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def checkpoint_metrics(steps: StepMetrics, step: int) -> dict[str, float]:
    """Return the metrics of a checkpoint; the validation of ours always covers all rows of the file."""
    metrics = steps.get(step, {})
    full = {f"full_{name}": value for name, value in metrics.items() if name.startswith("valid_")}
    return {"step": step} | metrics | full


def write_results(steps: StepMetrics, target: TextIO) -> None:
    """Write the CSV file with a row for each step."""
    has_rewards = any("train_mean_reward" in metrics for metrics in steps.values())
    columns = COLUMNS | (REWARD_COLUMNS if has_rewards else {})
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(_cells(columns.values(), step, metrics) for step, metrics in steps.items())


def _cells(names: Iterable[str], step: int, metrics: Mapping[str, float]) -> list[Any]:
    values: dict[str, Any] = {"step": step, **metrics}
    return [values.get(name, "") for name in names]
