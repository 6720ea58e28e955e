"""The curves of metrics, shortened so that a run of any length costs one query and a bounded response."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session, col

from app.runs.curves.main_metric import PREFERRED
from app.tables import Event, EventType, Run

MAX_POINTS = 300


@dataclass(frozen=True)
class RunCurve:
    """The mean values of a metric in equal parts of a run, by the first step of each part."""

    run_id: str
    steps: Sequence[int]
    values: Sequence[float]


def list_metrics(runs: Sequence[Run]) -> list[str]:
    """Return the metrics that any of the runs has logged, those that are preferred first."""
    names = dict.fromkeys(name for run in runs for name in run.metrics or {})
    preferred = [name for name, _ in PREFERRED if name in names]
    return [*preferred, *sorted(set(names) - set(preferred))]


def choose_metric(metrics: Sequence[str]) -> str | None:
    """Return the metric to show first: a loss in training has the most values."""
    return next((name for name in ("loss", "reward") if name in metrics), next(iter(metrics), None))


def read_curve(
    session: Session,
    run: Run,
    metric: str,
    max_points: int = MAX_POINTS,
    *,
    first_step: int = 0,
    last_step: int | None = None,
) -> RunCurve:
    """Return the curve of a metric between two steps; a part of them without values has no point."""
    value = col(Event.data)[metric].as_float()
    last = run.step if last_step is None else min(last_step, run.step)
    part = (col(Event.step) - first_step) * max_points // (max(last - first_step, 1) + 1)
    statement = (
        select(func.min(Event.step), func.avg(value))
        .where(col(Event.run_id) == run.id, col(Event.type) == EventType.metrics, value.is_not(None))
        .where(col(Event.step) >= first_step, col(Event.step) <= last)
        .group_by(part)
        .order_by(part)
    )
    points = [(step, mean) for step, mean in session.execute(statement) if step is not None]
    return RunCurve(run.id, [step for step, _ in points], [float(mean) for _, mean in points])


def smooth_values(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential moving average, corrected for its start, as the page of a run draws it."""
    mean = total = 0.0
    smoothed = []
    for value in values:
        mean = mean * weight + value * (1 - weight)
        total = total * weight + (1 - weight)
        smoothed.append(mean / total)
    return smoothed
