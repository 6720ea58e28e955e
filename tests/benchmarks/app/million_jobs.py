"""A history of jobs with three runs each, written to the tables, since a million posts would take hours."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg

from app.jobs.examples import ARITHMETIC_JOB
from app.settings import get_settings
from app.tables import RunStatus
from trainers.configs import StageKind, parse_stage

STAGES = (StageKind.sft, StageKind.evaluate, StageKind.deploy)
NAMES = 500
TEAMS = 20
QUEUED = 1000
RUNNING = 4
BEGIN = datetime(2025, 1, 1)
DONE, FAILED, CANCELLED = RunStatus.succeeded, RunStatus.failed, RunStatus.cancelled

JOB = "job (id, name, labels, priority, spec, created_by, spec_sha256, created_at)"
LABEL = "job_label (key, value, job_id)"
RUN = (
    "run (id, job_id, position, name, stage, queue, priority, config, "
    "status, attempt, failure_count, event_seq, step, created_at)"
)
_SPEC = json.dumps(ARITHMETIC_JOB)
_CONFIGS = [parse_stage(stage).model_dump_json() for stage in ARITHMETIC_JOB["stages"]]

Row = tuple[Any, ...]


def write(jobs: int) -> None:
    """Fill the tables of this process's database, oldest job first."""
    url = get_settings().database_url.get_secret_value()
    tables: Sequence[tuple[str, Iterator[Row]]] = (
        (JOB, (_job(n) for n in range(jobs))),
        (LABEL, (("team", team(n), job_id(n)) for n in range(jobs))),
        (RUN, (run for n in range(jobs) for run in _runs(n, jobs))),
    )
    if url.startswith("sqlite"):
        _write_sqlite(url.removeprefix("sqlite:///"), tables)
    else:
        _write_postgres(url, tables)


def job_id(n: int) -> str:
    """Return the id of the nth oldest job; like real ids it sorts by age."""
    return f"job_{n:026d}"


def name(n: int) -> str:
    """Return the name of a job: 2,000 of a million jobs share one, and 100 share `monthly`."""
    return "monthly" if n % 10_000 == 7 else f"nightly-{n % NAMES}"


def team(n: int) -> str:
    """Return the value of a job's label `team`."""
    return f"t{n % TEAMS}"


def status(n: int, jobs: int) -> RunStatus:
    """Return the status of a job: the newest are queued, 4 run, 1 in 50 failed, 1 in 200 was cancelled."""
    age = jobs - n
    if age <= QUEUED:
        return RunStatus.queued
    if age <= QUEUED + RUNNING:
        return RunStatus.running
    if n % 50 == 0:
        return FAILED
    return CANCELLED if n % 200 == 1 else DONE


def _job(n: int) -> Row:
    return (job_id(n), name(n), f'{{"team": "{team(n)}"}}', 0, _SPEC, "", "", _time(n))


def _runs(n: int, jobs: int) -> Iterator[Row]:
    for position, (stage, status) in enumerate(zip(STAGES, _statuses(n, jobs), strict=True)):
        yield (
            f"run_{3 * n + position:026d}", job_id(n), position, stage.value, stage.value, "cpu", 0,
            _CONFIGS[position], status.value, 1, 0, 3, 0, _time(n),
        )  # fmt: skip


def _statuses(n: int, jobs: int) -> Sequence[RunStatus]:
    of_job = status(n, jobs)
    if of_job is DONE:
        return DONE, DONE, DONE
    after = CANCELLED if of_job.finished else RunStatus.queued
    done = n // 50 % 3 if of_job is FAILED else 0
    return ([DONE] * done + [of_job] + [after] * 2)[:3]


def _time(n: int) -> str:
    return f"{BEGIN + timedelta(seconds=30 * n):%Y-%m-%d %H:%M:%S.%f}"


def _write_sqlite(path: str, tables: Iterable[tuple[str, Iterator[Row]]]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    for table, rows in tables:
        connection.execute("BEGIN IMMEDIATE")
        places = ", ".join("?" * (table.count(",") + 1))
        connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _write_postgres(url: str, tables: Iterable[tuple[str, Iterator[Row]]]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, rows in tables:
            with connection.transaction(), connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        # PostgreSQL would have done this itself while a million jobs arrived.
        connection.execute("VACUUM ANALYZE")
