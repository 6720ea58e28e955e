"""Lists of jobs that stay fast however many jobs there are, and however few of them match."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.http.errors import UnprocessableContent
from app.http.paging import PageQuery, paginate_newest_first
from app.jobs.schemas import JobSummaryView, StageSummaryView
from app.jobs.service import current_run
from app.runs.schemas import progress
from app.tables import Job, JobLabel, Run, RunStatus

# A table whose rows name jobs, the column that does, and what must be true of the row.
Filter = tuple[Any, list[ColumnElement[bool]]]


def list_jobs(
    session: Session, paging: PageQuery, status: RunStatus | None, name: str | None, labels: Sequence[str]
) -> tuple[list[JobSummaryView], str | None]:
    """Jobs from new to old that match all the filters given, labels as `key:value`; raises Invalid."""
    by_name = [_name(name)] if name is not None else []
    by_status = [_status(status)] if status else []
    filters = by_name + [_label(label) for label in labels]
    # Few jobs fail and many succeed: a status thins more than the rest unless it is `succeeded`.
    filters = filters + by_status if status is RunStatus.succeeded else by_status + filters
    statement, key = _walk(filters)
    jobs, following = paginate_newest_first(session, statement, key, paging)
    runs = _runs(session, [job.id for job in jobs])
    return [_summary(job, runs[job.id]) for job in jobs], following


def _walk(filters: Sequence[Filter]) -> tuple[Select[Job], Any]:
    """The query and the column of job ids by which it is ordered.

    The first filter is joined and ordered by, so that its index is walked and only jobs that match it
    are met. The others are asked of each of these; joined too, SQLite would sort all that match.
    """
    if not filters:
        return select(Job), col(Job.id)
    (key, conditions), *others = filters
    statement = select(Job).join(key.class_, key == col(Job.id)).where(*conditions)
    return statement.where(*(exists().where(column == key, *asked) for column, asked in others)), key


def _name(name: str) -> Filter:
    """As a condition on the job that is listed, SQLite would walk another filter's index for rare names."""
    job = aliased(Job)
    return col(job.id), [col(job.name) == name]


def _label(label: str) -> Filter:
    """A key holds no colon, a value may."""
    key, colon, value = label.partition(":")
    if not colon:
        raise UnprocessableContent(
            f"The label {label!r} is not written as key:value.",
            fields=[{"field": "label", "message": "Write a label as key:value."}],
        )
    row = aliased(JobLabel)
    return col(row.job_id), [col(row.key) == key, col(row.value) == value]


def _status(status: RunStatus) -> Filter:
    """By the one run that gives a job this status, as in `current_run`."""
    run, other = aliased(Run), aliased(Run)
    in_the_way = [col(other.job_id) == col(run.job_id), col(other.status) != RunStatus.succeeded]
    if status is RunStatus.succeeded:
        decides = col(run.position) == 0
    else:
        decides = col(run.status) == status
        in_the_way.append(col(other.position) < col(run.position))
    return col(run.job_id), [col(run.status) == status, decides, ~exists().where(*in_the_way)]


def _runs(session: Session, job_ids: Sequence[str]) -> dict[str, list[Run]]:
    """The runs of each job in order."""
    statement = select(Run).where(col(Run.job_id).in_(job_ids)).order_by(col(Run.job_id), col(Run.position))
    runs: dict[str, list[Run]] = {job_id: [] for job_id in job_ids}
    for run in session.scalars(statement):
        runs[run.job_id].append(run)
    return runs


def _summary(job: Job, runs: Sequence[Run]) -> JobSummaryView:
    stages = [
        StageSummaryView(
            run_id=run.id,
            name=run.name,
            stage=run.stage,
            queue=run.queue,
            status=run.status,
            progress=progress(run),
        )
        for run in runs
    ]
    return JobSummaryView(
        **job.model_dump(include={"id", "name", "labels", "priority", "created_at"}),
        status=current_run(runs).status,
        stages=stages,
    )
