"""Comparisons: queueing the run that computes one, and reading its result."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from app.comparisons.schemas import ComparisonCreate
from app.http.errors import NotFound, field_error
from app.http.paging import PageQuery, paginate_newest_first
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.settings import Settings
from app.storage.database import read_session
from app.tables import Comparison, Evaluation, Job
from trainers.configs import CompareConfig
from trainers.runtime.error_codes import ErrorCode


class ComparisonNotFound(NotFound):
    """No comparison has this id."""

    code = ErrorCode.comparison_not_found


def create_comparison(session: Session, settings: Settings, body: ComparisonCreate, created_by: str) -> Job:
    """Queue the run that compares evaluations; raises UnprocessableContent for one that does not exist."""
    _check_evaluations(session, body)
    stage = CompareConfig(stage="compare", evaluations=body.evaluations, metrics=body.metrics)
    spec = JobCreate(name=body.name or "comparison", priority=100, queue=body.queue, stages=[stage])
    job, _ = jobs.create_job(session, settings, spec, created_by, None)
    return job


def list_comparisons(
    session: Session, paging: PageQuery, job: str | None
) -> tuple[Sequence[Comparison], str | None]:
    """Return a page of comparisons, newest first."""
    statement = select(Comparison)
    if job is not None:
        statement = statement.where(col(Comparison.job_id) == job)
    return paginate_newest_first(session, statement, col(Comparison.id), paging)


def get_comparison(session: Session, comparison_id: str) -> Comparison:
    """Return the comparison; raises ComparisonNotFound."""
    comparison = session.get(Comparison, comparison_id)
    if comparison is None:
        raise ComparisonNotFound(
            f"There is no comparison {comparison_id}.",
            hint="List the comparisons with GET /api/v1/comparisons.",
        )
    return comparison


def load_comparison(comparison_id: str) -> Comparison:
    """Return the comparison, with the session closed again: reading a file must not keep one open."""
    with read_session() as session:
        return get_comparison(session, comparison_id)


def _check_evaluations(session: Session, body: ComparisonCreate) -> None:
    """Check the ids here: the job would report them under `stages.0`, a field that this request lacks."""
    for position, evaluation_id in enumerate(body.evaluations):
        field = f"evaluations.{position}"
        if body.evaluations.index(evaluation_id) < position:
            raise field_error(field, f"{evaluation_id} is listed twice.")
        if session.get(Evaluation, evaluation_id) is None:
            message = f"There is no evaluation {evaluation_id}. List them with GET /api/v1/evaluations."
            raise field_error(field, message)
