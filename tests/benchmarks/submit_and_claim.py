"""How fast jobs are taken in and claimed, beside a plain Celery task behind FastAPI measured in the same run.

python -m tests.benchmarks.submit_and_claim
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from app.storage.database import database_now, transaction
from app.tables import Job, Run, RunStatus, Worker
from tests.benchmarks.claims import claim_all
from tests.benchmarks.figures import milliseconds, p50, p95, table
from tests.benchmarks.installation import durable_postgres, installation, new_database
from tests.benchmarks.load import LoadClient, LoadResult, post_many
from tests.benchmarks.plain_celery import read_starts
from tests.e2e.platform import ROOT, Platform, kill, until
from tests.services import free_port, redis_url
from trainers.configs import Queue, StageKind

CONCURRENCY = (1, 16)
PROCESSES = (1, 4)
# The first is a machine without any server, the second a team's; the others tell what makes the difference.
STORAGE = [
    ("SQLite", "filesystem"),
    ("PostgreSQL", "Redis"),
    ("SQLite", "Redis"),
    ("PostgreSQL", "filesystem"),
]
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Figures:
    """What was measured of one storage; keys are connections and processes."""

    starts: list[float] = field(default_factory=list)
    handovers: list[float] = field(default_factory=list)
    posts: dict[str, LoadResult] = field(default_factory=dict)
    claims: dict[int, LoadResult] = field(default_factory=dict)


def main() -> None:
    """Measure everything, then print a table each for posts, claims and starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--posts", type=int, default=800, help="posts at each concurrency")
    parser.add_argument("--runs", type=int, default=2000, help="runs to claim, and tasks to work off")
    parser.add_argument("--bells", type=int, default=30, help="posts to an idle worker, and to a busy one")
    options = parser.parse_args()
    ours: dict[str, Figures] = {}
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder,
        durable_postgres() as postgres,
        redis_url("secret") as redis,
    ):
        plain = _measure_plain(Path(folder), redis, options)
        for number, (database, broker) in enumerate(STORAGE):
            database_url = new_database(postgres, f"n{number}") if database == "PostgreSQL" else ""
            broker_url = redis.replace("/0", f"/{number + 1}") if broker == "Redis" else ""
            with installation(Path(folder) / str(number), database_url, broker_url) as platform:
                ours[f"{database}, {broker}"] = _measure(platform, options)
    _print(ours, plain)


def _measure(platform: Platform, options: argparse.Namespace) -> Figures:
    figures = Figures()
    # The folder is allowed and absent: a run ends as soon as it is claimed, and no program takes the cores.
    stage = {"stage": "prepare", "base": str(platform.folder / "models" / "absent"), "dataset": "train"}
    body = {"name": "benchmark", "stages": [stage]}
    worker = platform.start_worker()
    figures.starts = [_start_latency(platform, body) for _ in _arrivals(options.bells)]
    figures.handovers = _handovers(platform, body, options.bells)
    worker.terminate()
    worker.wait(30)
    for concurrency in CONCURRENCY:
        posted = post_many(platform.base_url, "/api/v1/jobs", body, options.posts, concurrency)
        figures.posts[str(concurrency)] = posted
    with _busy_worker():
        figures.posts["1, all workers busy"] = post_many(
            platform.base_url, "/api/v1/jobs", body, options.posts // 4, 1
        )
    for processes in PROCESSES:
        figures.claims[processes] = claim_all(options.runs, processes)
    return figures


def _arrivals(count: int) -> Iterator[int]:
    """At moments that share no rhythm with a worker that polls, and long enough apart that it is idle."""
    for number in range(count):
        time.sleep(random.uniform(1.2, 1.8))
        yield number


def _start_latency(platform: Platform, body: Any) -> float:
    """Seconds from sending the post to the claim, by the one clock of this machine."""
    client = LoadClient(platform.base_url)
    sent_at = time.time()
    job_id = client.post("/api/v1/jobs", body)["id"]
    until(lambda: platform.job(job_id)["status"] in ENDED, 30, "the worker does not take the run")
    return datetime.fromisoformat(platform.run(job_id)["started_at"]).timestamp() - sent_at


def _handovers(platform: Platform, body: Any, count: int) -> list[float]:
    """Seconds from the end of one run to the claim of the next, which was queued before."""
    client = LoadClient(platform.base_url)
    jobs = [client.post("/api/v1/jobs", body)["id"] for _ in range(count)]
    until(lambda: platform.job(jobs[-1])["status"] in ENDED, 5 * count, "the worker does not take the runs")
    runs = sorted((platform.run(job) for job in jobs), key=lambda run: run["started_at"])
    return [
        (
            datetime.fromisoformat(after["started_at"]) - datetime.fromisoformat(before["finished_at"])
        ).total_seconds()
        for before, after in pairwise(runs)
    ]


@contextmanager
def _busy_worker() -> Iterator[None]:
    """A living worker with a run in hand: an answer then counts the runs that come first."""
    worker = Worker(name="busy", host="here", pid=1, queues=[Queue.cpu], stages=list(StageKind))
    job = Job(name="busy")
    with transaction() as session:
        session.add_all([worker, job])
        session.flush()
        worker.last_seen_at = session.scalar(database_now(3600).select())
        session.add(
            Run(
                job_id=job.id, position=0, name="sft", stage=StageKind.sft, queue=Queue.cpu, config={},
                status=RunStatus.running, worker_id=worker.id, attempt=1,
                lease_expires_at=worker.last_seen_at,
            )
        )  # fmt: skip
    yield


def _measure_plain(folder: Path, redis: str, options: argparse.Namespace) -> Figures:
    figures, noted = Figures(), folder / "starts"
    environment = {**os.environ, "PLAIN_BROKER": redis, "PLAIN_STARTS": str(noted)}
    with _plain_api(environment) as base_url:
        client = LoadClient(base_url)
        with _plain_worker(environment, 1):
            client.post("/jobs", {"sent_at": time.time()})
            until(lambda: len(read_starts(noted)) == 1, 60, "the plain worker does not start")
            for _ in _arrivals(options.bells):
                client.post("/jobs", {"sent_at": time.time()})
            until(lambda: len(read_starts(noted)) == 1 + options.bells, 30, "tasks do not start")
        figures.starts = [started - sent for sent, started in read_starts(noted)[1:]]
        for concurrency in CONCURRENCY:
            posted = post_many(base_url, "/jobs", {"sent_at": 0}, options.posts, concurrency)
            figures.posts[str(concurrency)] = posted
        with _plain_worker(environment, 4):
            until(lambda: len(read_starts(noted)) > options.bells + 2 * options.posts, 300, "tasks are left")
        for processes in PROCESSES:
            figures.claims[processes] = _drain(base_url, environment, noted, options.runs, processes)
    return figures


def _drain(base_url: str, environment: dict[str, str], noted: Path, tasks: int, processes: int) -> LoadResult:
    """Work off tasks that were all sent before the worker began; there is no latency of a single one."""
    client = LoadClient(base_url)
    noted.unlink()
    for _ in range(tasks):
        client.post("/jobs", {"sent_at": 0})
    with _plain_worker(environment, processes):
        until(lambda: len(read_starts(noted)) == tasks, 300, "tasks are left")
    started = [moment for _, moment in read_starts(noted)]
    return LoadResult([0.0] * (tasks - 1), started[-1] - started[0])


@contextmanager
def _plain_api(environment: dict[str, str]) -> Iterator[str]:
    port = free_port()
    server = ["-m", "uvicorn", "tests.benchmarks.plain_celery:api", "--port", str(port)]
    with _process([*server, "--no-access-log", "--log-level", "warning"], environment):
        until(lambda: _is_open(port), 30, "the plain endpoint does not answer")
        yield f"http://127.0.0.1:{port}"


def _is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _plain_worker(environment: dict[str, str], processes: int) -> Iterator[None]:
    worker = ["-m", "celery", "-A", "tests.benchmarks.plain_celery", "worker", "-c", str(processes)]
    with _process(worker, environment):
        yield


@contextmanager
def _process(arguments: list[str], environment: dict[str, str]) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=ROOT, stdout=quiet, stderr=quiet
    )
    try:
        yield
    finally:
        kill(process)


def _print(ours: dict[str, Figures], plain: Figures) -> None:
    named = {"plain Celery on Redis": plain, **ours}
    table(
        "POST /api/v1/jobs",
        ["storage", "connections", "jobs/s", "p50 ms", "p95 ms", "jobs/s : plain Celery"],
        [
            [name, at, *_rated(load), f"{load.rate / plain.posts[at.split(',')[0]].rate:.2f}"]
            for name, figures in named.items()
            for at, load in figures.posts.items()
        ],
    )
    table(
        "Claims of queued runs; for Celery, tasks worked off",
        ["storage", "processes", "claims/s", "p50 ms", "p95 ms", "claims/s : plain Celery"],
        [
            [name, str(at), *_rated(load), f"{load.rate / plain.claims[at].rate:.2f}"]
            for name, figures in named.items()
            for at, load in figures.claims.items()
        ],
    )
    table(
        "From POST until an idle worker has the run, and from the end of one run to the claim of the next",
        ["storage", "start p50 ms", "p95 ms", "p50 : plain Celery", "next p50 ms", "p95 ms"],
        [
            [
                name,
                *_spread(figures.starts),
                f"{p50(figures.starts) / p50(plain.starts):.1f}",
                *_spread(figures.handovers),
            ]
            for name, figures in named.items()
        ],
    )


def _rated(load: LoadResult) -> list[str]:
    return [f"{load.rate:.0f}", *_spread(load.latencies if any(load.latencies) else [])]


def _spread(seconds: list[float]) -> list[str]:
    return [milliseconds(p50(seconds)), milliseconds(p95(seconds))] if seconds else ["–", "–"]


if __name__ == "__main__":
    main()
