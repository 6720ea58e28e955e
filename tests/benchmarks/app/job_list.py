"""Latency of the job list with a million jobs of three runs each: first page and last page.

python -m tests.benchmarks.app.job_list
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlencode

from app.http.paging import DEFAULT_LIMIT, PageQuery
from app.jobs import listing
from app.storage.database import read_session
from app.tables import RunStatus
from tests.benchmarks.app import million_jobs
from tests.benchmarks.app.installation import durable_postgres, installation, new_database
from tests.benchmarks.app.load import LoadClient, time_call
from tests.benchmarks.report import format_milliseconds, p50, p95, print_table
from tests.e2e.platform import Platform


@dataclass(frozen=True)
class JobFilter:
    """A query of the list, and the jobs that it should return."""

    status: RunStatus | None = None
    name: str | None = None
    label: str | None = None

    def matches(self, n: int, jobs: int) -> bool:
        """Return True if the list contains the nth oldest job."""
        return (
            self.status in (None, million_jobs.status(n, jobs))
            and self.name in (None, million_jobs.name(n))
            and self.label in (None, f"team:{million_jobs.team(n)}")
        )

    @property
    def parameters(self) -> dict[str, str]:
        """Return the query parameters."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.parameters.items()) or "none"


FILTERS = [
    JobFilter(),
    JobFilter(status=RunStatus.succeeded),
    JobFilter(status=RunStatus.failed),
    JobFilter(status=RunStatus.queued),
    JobFilter(name="nightly-7"),
    JobFilter(label="team:t7"),
    JobFilter(label="team:t10", status=RunStatus.failed),
    JobFilter(name="nightly-50", status=RunStatus.failed),
    JobFilter(name="monthly", status=RunStatus.succeeded),
    JobFilter(name="monthly", label="team:t7"),
]
# Each condition matches many jobs and both together none, so all matches of the first are examined.
EMPTY_FILTERS = [
    JobFilter(name="nightly-7", status=RunStatus.failed),
    JobFilter(label="team:t7", status=RunStatus.failed),
    JobFilter(label="team:t7", name="nightly-8"),
]


def main() -> None:
    """Fill each database and print a table for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder,
        installation(Path(folder) / "sqlite") as platform,
    ):
        _measure("SQLite", platform, options)
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder,
        durable_postgres() as postgres,
        installation(Path(folder) / "postgres", new_database(postgres, "jobs")) as platform,
    ):
        _measure("PostgreSQL", platform, options)


def _measure(database: str, platform: Platform, options: argparse.Namespace) -> None:
    started_at = time.monotonic()
    million_jobs.write(options.jobs)
    print(
        f"{database}: {options.jobs} jobs written in {time.monotonic() - started_at:.0f} s", file=sys.stderr
    )
    rows = []
    for query in FILTERS:
        for method, page in (("service", _by_service(query)), ("HTTP", _by_http(query, platform))):
            rows.append([str(query), method, *_first_against_last(page, query, options)])
    header = ["filter", "by", "first p50 ms", "p95 ms", "last p50 ms", "p95 ms", "last : first"]
    print_table(f"{database}, {options.jobs:,} jobs, pages of {DEFAULT_LIMIT}", header, rows)
    rows = [[str(query), *_empty(_by_http(query, platform), options)] for query in EMPTY_FILTERS]
    print_table(f"{database}, filters without matches, by HTTP", ["filter", "p50 ms", "p95 ms"], rows)


FetchPage = Callable[[str | None], list[str]]


def _by_service(query: JobFilter) -> FetchPage:
    labels = [query.label] if query.label else []

    def page(after: str | None) -> list[str]:
        with read_session() as session:
            found, _ = listing.list_jobs(session, PageQuery(after=after), query.status, query.name, labels)
        return [job.id for job in found]

    return page


def _by_http(query: JobFilter, platform: Platform) -> FetchPage:
    client = LoadClient(platform.base_url)

    def page(after: str | None) -> list[str]:
        parameters = query.parameters | ({"after": after} if after else {})
        return [job["id"] for job in client.get(f"/api/v1/jobs?{urlencode(parameters)}")["items"]]

    return page


def _first_against_last(page: FetchPage, query: JobFilter, options: argparse.Namespace) -> list[str]:
    """Measure both pages in turn, so that other work on the machine affects both."""
    newest = _ids(query, range(options.jobs - 1, -1, -1), options.jobs)
    oldest = _ids(query, range(options.jobs), options.jobs)
    *expected, before = list(islice(oldest, DEFAULT_LIMIT + 1))
    assert page(None) == list(islice(newest, DEFAULT_LIMIT))
    assert page(before) == expected[::-1]
    pairs = [(time_call(lambda: page(None)), time_call(lambda: page(before))) for _ in range(options.repeats)]
    first, last = zip(*pairs, strict=True)
    return [
        *(format_milliseconds(quantile(page)) for page in (first, last) for quantile in (p50, p95)),
        f"{p50(last) / p50(first):.2f}",
    ]


def _empty(page: FetchPage, options: argparse.Namespace) -> list[str]:
    assert page(None) == []
    latencies = [time_call(lambda: page(None)) for _ in range(options.repeats)]
    return [format_milliseconds(p50(latencies)), format_milliseconds(p95(latencies))]


def _ids(query: JobFilter, numbers: range, jobs: int) -> Iterator[str]:
    return (million_jobs.job_id(n) for n in numbers if query.matches(n, jobs))


if __name__ == "__main__":
    main()
