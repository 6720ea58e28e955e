"""Lists of jobs whose cost depends neither on the number of jobs nor on how few of them match."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.http.errors import UnprocessableContent
from app.http.paging import MAX_LIMIT, PageQuery, paginate_newest_first
from app.jobs.graph.status import decides
from app.jobs.inputs import is_recent, mentions
from app.jobs.schemas import JobSummaryView, summary_view
from app.tables import Job, JobLabel, Run, RunStatus
from app.tables.base import utc_now

# The column with the job ids of a table, and the conditions on its rows.
Filter = tuple[Any, list[ColumnElement[bool]]]

# No index finds a part of a name, so a search reads the names of this many jobs at most, the newest.
MAX_SEARCHED_JOBS = 100_000
MAX_SORTED_JOBS = MAX_LIMIT
_ESCAPES = str.maketrans({character: f"/{character}" for character in "/%_"})


class JobSort(StrEnum):
    """An order of the newest jobs by what they have done."""

    longest = "longest"
    best = "best"


def list_jobs(
    session: Session,
    paging: PageQuery,
    status: RunStatus | None,
    name: str | None,
    labels: Sequence[str],
    search: str | None = None,
) -> tuple[list[JobSummaryView], str | None]:
    """Return a page of jobs, newest first, that match all filters; a label is `key:value`.

    Raises UnprocessableContent for a label without a colon.
    """
    by_name = [_name_filter(name)] if name is not None else []
    by_status = [_status_filter(status)] if status else []
    filters = by_name + [_label_filter(label) for label in labels]
    # Few jobs have a status other than `succeeded`, so such a filter is the most selective one.
    filters = filters + by_status if status is RunStatus.succeeded else by_status + filters
    statement, key = _build_query(filters)
    if search:
        statement = statement.where(*_contain(search))
    jobs, after = paginate_newest_first(session, statement, key, paging)
    return _summarize(session, jobs), after


def list_sorted_jobs(
    session: Session,
    sort: JobSort,
    status: RunStatus | None,
    labels: Sequence[str],
    search: str | None,
    limit: int,
) -> list[JobSummaryView]:
    """Return the first jobs of the newest MAX_SORTED_JOBS that match all filters, in another order.

    No index has durations or scores, so more jobs are not read. Scores of different metrics are not compared:
    the jobs of each metric follow each other.
    """
    jobs, _ = list_jobs(session, PageQuery(limit=MAX_SORTED_JOBS), status, None, labels, search)
    if sort is JobSort.longest:
        now = utc_now()
        return sorted(jobs, key=lambda job: _measure_duration(job, now), reverse=True)[:limit]
    return sorted(jobs, key=_rank_score)[:limit]


def _measure_duration(job: JobSummaryView, now: datetime) -> timedelta:
    return timedelta() if job.started_at is None else (job.finished_at or now) - job.started_at


def _rank_score(job: JobSummaryView) -> tuple[bool, str, float]:
    if job.metric is None:
        return True, "", 0.0
    return False, job.metric.name, job.metric.value if job.metric.is_lower_better else -job.metric.value


def list_jobs_of_input(session: Session, input_id: str, limit: int) -> list[JobSummaryView]:
    """Return the newest jobs of which a stage reads or has produced a dataset or model.

    Of a service with more than 10,000 runs, only the newest of them are searched.
    """
    ids = select(col(Run.job_id)).where(is_recent(), mentions(input_id)).distinct()
    jobs = session.scalars(select(Job).where(col(Job.id).in_(ids)).order_by(col(Job.id).desc()).limit(limit))
    return _summarize(session, jobs.all())


def _summarize(session: Session, jobs: Sequence[Job]) -> list[JobSummaryView]:
    runs = _runs_by_job(session, [job.id for job in jobs])
    # A job without runs was deleted after it was read.
    return [summary_view(job, runs[job.id]) for job in jobs if runs[job.id]]


def _build_query(filters: Sequence[Filter]) -> tuple[Select[Job], Any]:
    """Return the query and the column of job ids to order by.

    The first filter is joined and ordered by, so that the database walks its index and visits only jobs that
    match it. The other filters are EXISTS conditions on each of them: if they were joined too, SQLite would
    sort all matches.
    """
    if not filters:
        return select(Job), col(Job.id)
    (key, conditions), *others = filters
    statement = select(Job).join(key.class_, key == col(Job.id)).where(*conditions)
    return statement.where(
        *(exists().where(column == key, *conditions) for column, conditions in others)
    ), key


def _contain(search: str) -> list[ColumnElement[bool]]:
    """Return the conditions that a job's name contains a text, and that it is not too old to be searched."""
    newest = select(col(Job.id)).order_by(col(Job.id).desc()).offset(MAX_SEARCHED_JOBS).limit(1)
    pattern = f"%{search.translate(_ESCAPES)}%"
    oldest = func.coalesce(newest.scalar_subquery(), "")
    return [col(Job.name).ilike(pattern, escape="/"), col(Job.id) >= oldest]


def _name_filter(name: str) -> Filter:
    """Filter by name on an alias of the table: on `Job` itself SQLite would not use the index of the name."""
    job = aliased(Job)
    return col(job.id), [col(job.name) == name]


def _label_filter(label: str) -> Filter:
    # A value may contain a colon, a key may not.
    key, colon, value = label.partition(":")
    if not colon:
        raise UnprocessableContent(
            f"The label {label!r} is not of the form key:value.",
            fields=[{"field": "label", "message": "Write a label as key:value."}],
        )
    row = aliased(JobLabel)
    return col(row.job_id), [col(row.key) == key, col(row.value) == value]


def _status_filter(status: RunStatus) -> Filter:
    """Filter by the one run that decides a job's status."""
    run = aliased(Run)
    return col(run.job_id), decides(run, status)


def _runs_by_job(session: Session, job_ids: Sequence[str]) -> dict[str, list[Run]]:
    statement = select(Run).where(col(Run.job_id).in_(job_ids)).order_by(col(Run.job_id), col(Run.position))
    runs: dict[str, list[Run]] = {job_id: [] for job_id in job_ids}
    for run in session.scalars(statement):
        runs[run.job_id].append(run)
    return runs
