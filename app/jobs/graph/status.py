"""The status of a job, which is that of one of its runs.

The status that comes first in `ORDER` decides, so a job is `running` while one of its runs is, and `failed`
if one failed and no other can continue. `skipped` never decides, and neither does a gate that was not met if
a stage with `when: not_met` handled it: a job whose other runs have succeeded has succeeded.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, case, exists, false, or_
from sqlalchemy.orm import aliased
from sqlmodel import col

from app.tables import Run, RunStatus

ORDER = (
    RunStatus.cancelling,
    RunStatus.pausing,
    RunStatus.running,
    RunStatus.queued,
    RunStatus.paused,
    RunStatus.failed,
    RunStatus.cancelled,
    RunStatus.succeeded,
)
_RANKS = {status: rank for rank, status in enumerate(ORDER)}


def find_deciding_run(runs: Sequence[Run]) -> Run:
    """Return the run whose status is the job's: of several with the same status, the first."""
    deciding = [run for run in runs if run.status in _RANKS and not run.handled]
    return min(deciding, key=lambda run: (_RANKS[run.status], run.position))


def decides(run: type[Run], status: RunStatus) -> list[ColumnElement[bool]]:
    """Return the SQL conditions that a run decides its job's status, and that it is this one."""
    if status is RunStatus.skipped:
        return [false()]
    other = aliased(Run)
    before = ORDER[: _RANKS[status]]
    comes_first = or_(
        col(other.status).in_(before),
        and_(col(other.status) == status, col(other.position) < col(run.position)),
    )
    blocked = exists().where(col(other.job_id) == col(run.job_id), col(other.handled).is_(False), comes_first)
    return [col(run.status) == status, col(run.handled).is_(False), ~blocked]


def decides_unsuccessful() -> list[ColumnElement[bool]]:
    """Return the SQL conditions that a run decides its job's status, which is not `succeeded`."""
    other = aliased(Run)
    rank, other_rank = _rank(Run), _rank(other)
    comes_first = or_(other_rank < rank, and_(other_rank == rank, col(other.position) < col(Run.position)))
    blocked = exists().where(col(other.job_id) == col(Run.job_id), col(other.handled).is_(False), comes_first)
    return [col(Run.status).in_(ORDER[:-1]), col(Run.handled).is_(False), ~blocked]


def _rank(run: type[Run]) -> ColumnElement[int]:
    return case(_RANKS, value=col(run.status), else_=len(ORDER))
