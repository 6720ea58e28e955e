"""Latency of the job list at a million jobs with three runs each: the first page against the last.

python -m tests.benchmarks.job_list
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
from tests.benchmarks import million_jobs
from tests.benchmarks.figures import milliseconds, p50, p95, table
from tests.benchmarks.installation import durable_postgres, installation, new_database
from tests.benchmarks.load import LoadClient, time_call
from tests.e2e.platform import Platform


@dataclass(frozen=True)
class Filter:
    """A query of the list, and which jobs it should find."""

    status: RunStatus | None = None
    name: str | None = None
    label: str | None = None

    def finds(self, n: int, jobs: int) -> bool:
        """Whether the nth oldest job is in the list."""
        return (
            self.status in (None, million_jobs.status(n, jobs))
            and self.name in (None, million_jobs.name(n))
            and self.label in (None, f"team:{million_jobs.team(n)}")
        )

    @property
    def query(self) -> dict[str, str]:
        """As a URL has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.query.items()) or "none"


FILTERS = [
    Filter(),
    Filter(status=RunStatus.succeeded),
    Filter(status=RunStatus.failed),
    Filter(status=RunStatus.queued),
    Filter(name="nightly-7"),
    Filter(label="team:t7"),
    Filter(label="team:t10", status=RunStatus.failed),
    Filter(name="nightly-50", status=RunStatus.failed),
    Filter(name="monthly", status=RunStatus.succeeded),
    Filter(name="monthly", label="team:t7"),
]
# Each half of these is found often, both together never: all that the first half finds is looked at.
FIND_NOTHING = [
    Filter(name="nightly-7", status=RunStatus.failed),
    Filter(label="team:t7", status=RunStatus.failed),
    Filter(label="team:t7", name="nightly-8"),
]


def main() -> None:
    """Fill each database, then print a table for it."""
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
    begun = time.monotonic()
    million_jobs.write(options.jobs)
    print(f"{database}: {options.jobs} jobs written in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    rows = []
    for asked in FILTERS:
        for way, page in (("service", _by_service(asked)), ("HTTP", _by_http(asked, platform))):
            rows.append([str(asked), way, *_first_against_last(page, asked, options)])
    header = ["filter", "by", "first p50 ms", "p95 ms", "last p50 ms", "p95 ms", "last : first"]
    table(f"{database}, {options.jobs:,} jobs, pages of {DEFAULT_LIMIT}", header, rows)
    rows = [[str(asked), *_empty(_by_http(asked, platform), options)] for asked in FIND_NOTHING]
    table(f"{database}, filters that find nothing, by HTTP", ["filter", "p50 ms", "p95 ms"], rows)


Page = Callable[[str | None], list[str]]


def _by_service(asked: Filter) -> Page:
    labels = [asked.label] if asked.label else []

    def page(after: str | None) -> list[str]:
        with read_session() as session:
            found, _ = listing.list_jobs(session, PageQuery(after=after), asked.status, asked.name, labels)
        return [job.id for job in found]

    return page


def _by_http(asked: Filter, platform: Platform) -> Page:
    client = LoadClient(platform.base_url)

    def page(after: str | None) -> list[str]:
        query = asked.query | ({"after": after} if after else {})
        return [job["id"] for job in client.get(f"/api/v1/jobs?{urlencode(query)}")["items"]]

    return page


def _first_against_last(page: Page, asked: Filter, options: argparse.Namespace) -> list[str]:
    """Both pages are asked for in turn, so that what else the machine does falls on both."""
    newest = _ids(asked, range(options.jobs - 1, -1, -1), options.jobs)
    oldest = _ids(asked, range(options.jobs), options.jobs)
    *expected, before = list(islice(oldest, DEFAULT_LIMIT + 1))
    assert page(None) == list(islice(newest, DEFAULT_LIMIT))
    assert page(before) == expected[::-1]
    pairs = [(time_call(lambda: page(None)), time_call(lambda: page(before))) for _ in range(options.repeats)]
    first, last = zip(*pairs, strict=True)
    return [
        *(milliseconds(figure(page)) for page in (first, last) for figure in (p50, p95)),
        f"{p50(last) / p50(first):.2f}",
    ]


def _empty(page: Page, options: argparse.Namespace) -> list[str]:
    assert page(None) == []
    latencies = [time_call(lambda: page(None)) for _ in range(options.repeats)]
    return [milliseconds(p50(latencies)), milliseconds(p95(latencies))]


def _ids(asked: Filter, numbers: range, jobs: int) -> Iterator[str]:
    return (million_jobs.job_id(n) for n in numbers if asked.finds(n, jobs))


if __name__ == "__main__":
    main()
