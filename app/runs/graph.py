"""The graph of a job's runs: what each run needs, and what follows for the others when one has ended.

A run needs runs of earlier stages only, so the order of the stages is an order of the graph.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, exists, select
from sqlmodel import Session, col

from app.tables import RequiredEnd, Run, RunNeed, RunStatus
from trainers.runtime.error_codes import ErrorCode

# The runs that each run needs, by the id of the run that needs them.
Needs = Mapping[str, Sequence[RunNeed]]


def load_needs(session: Session, job_id: str) -> Needs:
    """Return what the runs of a job need; a run that needs none has no entry."""
    of_job = select(RunNeed).join(Run, col(Run.id) == col(RunNeed.run_id)).where(col(Run.job_id) == job_id)
    return group_needs(session.scalars(of_job))


def group_needs(needs: Iterable[RunNeed]) -> Needs:
    """Return the needs by the run that has them."""
    by_run: dict[str, list[RunNeed]] = defaultdict(list)
    for need in needs:
        by_run[need.run_id].append(need)
    return by_run


def is_handled(run_id: str, *, not_met: bool) -> ColumnElement[bool]:
    """Return the SQL condition that a stage runs although this run fails, or because it is a gate."""
    ends = (RequiredEnd.failed, RequiredEnd.finished) if not_met else (RequiredEnd.finished,)
    return exists().where(col(RunNeed.needed_id) == run_id, col(RunNeed.required_status).in_(ends))


def list_dependents(runs: Sequence[Run], needs: Needs, start: Run) -> list[Run]:
    """Return the runs that need `start`, directly or through others, in the order of the stages."""
    reached = {start.id}
    dependents = []
    for run in runs:
        if any(need.needed_id in reached for need in needs.get(run.id, ())):
            reached.add(run.id)
            dependents.append(run)
    return dependents


def find_effects(runs: Sequence[Run], needs: Needs, ended: Run) -> Iterator[tuple[Run, RunStatus]]:
    """Yield each run on which the end of a run has an effect, with the status that follows.

    `queued` is a run that needs it directly and may start as far as this one is concerned. The others cannot
    start any more: a gate's decision makes them `skipped`, a failure or a cancellation `cancelled`.
    """
    is_decision = ended.status is not RunStatus.failed or is_gate_not_met(ended)
    lost = (
        RunStatus.cancelled if ended.status is RunStatus.cancelled or not is_decision else RunStatus.skipped
    )
    lost_ids: set[str] = set()
    for run in runs:
        of_run = needs.get(run.id, ())
        direct = [need for need in of_run if need.needed_id == ended.id]
        is_unmet = any(
            not need.required_status.allows(ended.status)
            or not (is_decision or need.required_status is RequiredEnd.finished)
            for need in direct
        )
        if is_unmet or any(need.needed_id in lost_ids for need in of_run):
            lost_ids.add(run.id)
            yield run, lost
        elif direct:
            yield run, RunStatus.queued


def plan_retry(runs: Sequence[Run], needs: Needs) -> Iterator[tuple[Run, RunStatus]]:
    """Yield each run whose status a retry changes, with the new one.

    Runs that failed, were cancelled or were skipped are queued again. The decision of a gate that a stage
    with `when: not_met` has handled stays, and so the runs that it excludes are skipped. A failed run of a
    sweep stays as well.
    """
    after = {run.id: run.status for run in runs}
    for run in runs:
        if run.handled or run.status not in (RunStatus.failed, RunStatus.cancelled, RunStatus.skipped):
            continue
        is_excluded = any(
            after[need.needed_id].finished and not need.required_status.allows(after[need.needed_id])
            for need in needs.get(run.id, ())
        )
        to = RunStatus.skipped if is_excluded else RunStatus.queued
        if to is not run.status:
            after[run.id] = to
            yield run, to


def is_gate_not_met(run: Run) -> bool:
    """Return whether the run failed as a gate that is not met, rather than because of an error."""
    return (
        run.status is RunStatus.failed
        and run.error is not None
        and run.error["code"] == ErrorCode.gate_not_met
    )


def list_needed_names(runs: Collection[Run], needs: Needs) -> dict[str, list[str]]:
    """Return the names of the stages that each run needs directly, in their order, by the run's id."""
    return {
        run.id: [other.name for other in runs if any(other.id == n.needed_id for n in needs.get(run.id, ()))]
        for run in runs
    }
