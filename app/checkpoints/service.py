"""Reading checkpoints: with the metrics of their steps, and with the models that have their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, select
from sqlmodel import Session, col

from app.checkpoints.schemas import CheckpointView
from app.http.paging import PageQuery, paginate_newest_first
from app.runs.curves.main_metric import PREFERRED, MainMetricView, MetricChoice
from app.runs.service import get_run
from app.tables import Checkpoint, Event, EventType, FineTuningCheckpoint, FineTuningJob, Run, RunStatus


@dataclass(frozen=True)
class BestCheckpoint:
    """The value of the best checkpoint, and the checkpoint before it in the list, which is newest first."""

    value: MainMetricView
    after: str | None


def list_checkpoints(
    session: Session, run_id: str, paging: PageQuery
) -> tuple[list[CheckpointView], str | None]:
    """Return a page of a run's published checkpoints, newest first; raises RunNotFound."""
    run = get_run(session, run_id)
    statement = select(Checkpoint).where(col(Checkpoint.run_id) == run_id)
    checkpoints, after = paginate_newest_first(session, statement, col(Checkpoint.id), paging)
    metrics = _read_metrics(session, run, checkpoints)
    models = _find_models(session, run, checkpoints)
    views = [
        CheckpointView.model_validate(checkpoint).model_copy(
            update={"metrics": metrics.get(checkpoint.step, {}), "model_id": models.get(checkpoint.step)}
        )
        for checkpoint in checkpoints
    ]
    return views, after


def find_resumed_checkpoint(session: Session, run_id: str) -> Checkpoint | None:
    """Return the checkpoint from which the next attempt at a run resumes; None without one."""
    latest = select(Checkpoint).where(col(Checkpoint.run_id) == run_id, col(Checkpoint.resumable).is_(True))
    latest = latest.order_by(col(Checkpoint.step).desc(), col(Checkpoint.attempt).desc()).limit(1)
    return session.scalars(latest).one_or_none()


def choose_metric(checkpoints: Sequence[CheckpointView]) -> tuple[str, MetricChoice] | None:
    """Return the metric by which checkpoints are judged: the first that one of them has."""
    for name, choice in PREFERRED:
        if any(checkpoint.metrics.get(name) is not None for checkpoint in checkpoints):
            return name, choice
    return None


def find_best(session: Session, run_id: str, metric: str, choice: MetricChoice) -> BestCheckpoint | None:
    """Return the best of all checkpoints of a run, of equal ones the newest; None if no metric tells which.

    A training loss does not: it is the loss of the rows of one step.
    """
    if choice is MetricChoice.last:
        return None
    value = col(Event.data)[metric].as_float()
    order = value.asc() if choice is MetricChoice.lowest else value.desc()
    statement = (
        select(col(Checkpoint.id), col(Checkpoint.step), value)
        .join(
            Event,
            and_(col(Event.run_id) == col(Checkpoint.run_id), col(Event.step) == col(Checkpoint.step)),
        )
        .where(col(Checkpoint.run_id) == run_id, col(Event.type) == EventType.metrics, value.is_not(None))
        .order_by(order, col(Checkpoint.id).desc())
        .limit(1)
    )
    found = session.execute(statement).first()
    if found is None:
        return None
    newer = select(func.min(Checkpoint.id)).where(
        col(Checkpoint.run_id) == run_id, col(Checkpoint.id) > found[0]
    )
    best = MainMetricView(name=metric, value=found[2], step=found[1], choice=choice)
    return BestCheckpoint(best, session.scalar(newer))


def _read_metrics(
    session: Session, run: Run, checkpoints: Sequence[Checkpoint]
) -> Mapping[int, dict[str, float | None]]:
    """Return the metrics by step; a step that was repeated after a stop has its last values."""
    if not checkpoints:
        return {}
    events = select(col(Event.step), col(Event.data)).where(
        col(Event.run_id) == run.id,
        col(Event.type) == EventType.metrics,
        col(Event.step).in_({checkpoint.step for checkpoint in checkpoints}),
    )
    found: dict[int, dict[str, float | None]] = {}
    for step, data in session.execute(events.order_by(col(Event.seq))):
        found.setdefault(step, {}).update(data)
    return found


def _find_models(session: Session, run: Run, checkpoints: Sequence[Checkpoint]) -> dict[int, str]:
    """Return the ids of the registry's models with the weights of checkpoints, by step."""
    if not checkpoints or run.status is not RunStatus.succeeded or run.model_id is None:
        return {}
    of_job = (
        select(col(FineTuningCheckpoint.step), col(FineTuningCheckpoint.model_id))
        .join(FineTuningJob, col(FineTuningJob.id) == col(FineTuningCheckpoint.fine_tuning_job_id))
        .where(col(FineTuningJob.job_id) == run.job_id)
    )
    return {run.step: run.model_id} | {row.step: row.model_id for row in session.execute(of_job)}
