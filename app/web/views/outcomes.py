"""What the runs of a job have produced: where a person continues after a run."""

from collections.abc import Mapping

from sqlmodel import Session

from app.evaluations.service import EvaluationFilters, list_evaluations
from app.http.paging import MAX_LIMIT, PageQuery


def find_evaluations(session: Session, job_id: str) -> Mapping[str, str]:
    """Return for each run of a job that has evaluated models the evaluation of the first one."""
    newest_first, _ = list_evaluations(session, PageQuery(limit=MAX_LIMIT), EvaluationFilters(job=job_id))
    # A run stores its models in their order.
    return {each.run_id: each.id for each in newest_first if each.run_id is not None}
