"""The speed of submitting and claiming jobs, compared with a plain Celery task behind FastAPI in one run.

python -m tests.benchmarks.app.submit_and_claim
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
from tests.benchmarks.app.claims import claim_all
from tests.benchmarks.app.installation import durable_postgres, installation, new_database
from tests.benchmarks.app.load import LoadClient, LoadResult, post_many
from tests.benchmarks.app.plain_celery import read_starts
from tests.benchmarks.report import format_milliseconds, p50, p95, print_table
from tests.e2e.platform import ROOT, Platform, kill, wait_until
from tests.services import free_port, redis_url
from trainers.configs import Queue, StageKind

CONCURRENCY = (1, 16)
PROCESSES = (1, 4)
# The first is the embedded default, the second a team's; the others show which part makes the difference.
STORAGE = [
    ("SQLite", "filesystem"),
    ("PostgreSQL", "Redis"),
    ("SQLite", "Redis"),
    ("PostgreSQL", "filesystem"),
]
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class StorageResult:
    """The measurements of one storage; keys are numbers of connections and of processes."""

    starts: list[float] = field(default_factory=list)
    handovers: list[float] = field(default_factory=list)
    posts: dict[str, LoadResult] = field(default_factory=dict)
    claims: dict[int, LoadResult] = field(default_factory=dict)


def main() -> None:
    """Measure everything, then print tables for posts, claims and starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--posts", type=int, default=800, help="posts at each concurrency")
    parser.add_argument("--runs", type=int, default=2000, help="runs to claim, and tasks to process")
    parser.add_argument("--starts", type=int, default=30, help="posts to an idle worker, and to a busy one")
    options = parser.parse_args()
    ours: dict[str, StorageResult] = {}
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


def _measure(platform: Platform, options: argparse.Namespace) -> StorageResult:
    result = StorageResult()
    # The folder does not exist, so a run ends as soon as it is claimed, and no program uses the cores.
    stage = {"stage": "prepare", "base": str(platform.folder / "models" / "absent"), "dataset": "train"}
    body = {"name": "benchmark", "stages": [stage]}
    worker = platform.start_worker()
    result.starts = [_start_latency(platform, body) for _ in _arrivals(options.starts)]
    result.handovers = _handovers(platform, body, options.starts)
    worker.terminate()
    worker.wait(30)
    for concurrency in CONCURRENCY:
        posted = post_many(platform.base_url, "/api/v1/jobs", body, options.posts, concurrency)
        result.posts[str(concurrency)] = posted
    with _busy_worker():
        result.posts["1, all workers busy"] = post_many(
            platform.base_url, "/api/v1/jobs", body, options.posts // 4, 1
        )
    for processes in PROCESSES:
        result.claims[processes] = claim_all(options.runs, processes)
    return result


def _arrivals(count: int) -> Iterator[int]:
    """Yield at random intervals, so that they are out of step with polling, and the worker is idle again."""
    for number in range(count):
        time.sleep(random.uniform(1.2, 1.8))
        yield number


def _start_latency(platform: Platform, body: Any) -> float:
    """Return the seconds from sending the post to the claim."""
    client = LoadClient(platform.base_url)
    sent_at = time.time()
    job_id = client.post("/api/v1/jobs", body)["id"]
    wait_until(lambda: platform.job(job_id)["status"] in ENDED, 30, "the worker claims the run")
    return datetime.fromisoformat(platform.run(job_id)["started_at"]).timestamp() - sent_at


def _handovers(platform: Platform, body: Any, count: int) -> list[float]:
    """Return the seconds from the end of one run to the claim of the next, which is queued already."""
    client = LoadClient(platform.base_url)
    jobs = [client.post("/api/v1/jobs", body)["id"] for _ in range(count)]
    wait_until(lambda: platform.job(jobs[-1])["status"] in ENDED, 5 * count, "the worker claims the runs")
    runs = sorted((platform.run(job) for job in jobs), key=lambda run: run["started_at"])
    return [
        (
            datetime.fromisoformat(after["started_at"]) - datetime.fromisoformat(before["finished_at"])
        ).total_seconds()
        for before, after in pairwise(runs)
    ]


@contextmanager
def _busy_worker() -> Iterator[None]:
    """Insert a busy worker: the response to a post then includes the number of runs ahead."""
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


def _measure_plain(folder: Path, redis: str, options: argparse.Namespace) -> StorageResult:
    result, starts_file = StorageResult(), folder / "starts"
    environment = {**os.environ, "PLAIN_BROKER": redis, "PLAIN_STARTS": str(starts_file)}
    with _plain_api(environment) as base_url:
        with _plain_worker(environment, 1):
            LoadClient(base_url).post("/jobs", {"sent_at": time.time()})
            wait_until(lambda: len(read_starts(starts_file)) == 1, 60, "the plain worker starts")
            # uvicorn closes a connection that is idle for 5 s, and the worker may take longer to start.
            client = LoadClient(base_url)
            for _ in _arrivals(options.starts):
                client.post("/jobs", {"sent_at": time.time()})
            wait_until(lambda: len(read_starts(starts_file)) == 1 + options.starts, 30, "the tasks start")
        result.starts = [started - sent for sent, started in read_starts(starts_file)[1:]]
        for concurrency in CONCURRENCY:
            posted = post_many(base_url, "/jobs", {"sent_at": 0}, options.posts, concurrency)
            result.posts[str(concurrency)] = posted
        # One uncounted post on each connection; a task that is left over would be counted by `_drain`.
        n_posts = sum(options.posts // count * count + count for count in CONCURRENCY)
        with _plain_worker(environment, 4):
            wait_until(
                lambda: len(read_starts(starts_file)) == 1 + options.starts + n_posts,
                300,
                "all tasks are processed",
            )
        for processes in PROCESSES:
            result.claims[processes] = _drain(base_url, environment, starts_file, options.runs, processes)
    return result


def _drain(
    base_url: str, environment: dict[str, str], starts_file: Path, tasks: int, processes: int
) -> LoadResult:
    """Process tasks that were all sent before the worker started, so single ones have no latency."""
    client = LoadClient(base_url)
    starts_file.unlink()
    for _ in range(tasks):
        client.post("/jobs", {"sent_at": 0})
    with _plain_worker(environment, processes):
        wait_until(lambda: len(read_starts(starts_file)) == tasks, 300, "all tasks are processed")
    started = [moment for _, moment in read_starts(starts_file)]
    return LoadResult([0.0] * (tasks - 1), started[-1] - started[0])


@contextmanager
def _plain_api(environment: dict[str, str]) -> Iterator[str]:
    port = free_port()
    server = ["-m", "uvicorn", "tests.benchmarks.app.plain_celery:api", "--port", str(port)]
    with _process([*server, "--no-access-log", "--log-level", "warning"], environment):
        wait_until(lambda: _is_open(port), 30, "the plain endpoint responds")
        yield f"http://127.0.0.1:{port}"


def _is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _plain_worker(environment: dict[str, str], processes: int) -> Iterator[None]:
    worker = ["-m", "celery", "-A", "tests.benchmarks.app.plain_celery", "worker", "-c", str(processes)]
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


def _print(ours: dict[str, StorageResult], plain: StorageResult) -> None:
    named = {"plain Celery on Redis": plain, **ours}
    print_table(
        "POST /api/v1/jobs",
        ["storage", "connections", "jobs/s", "p50 ms", "p95 ms", "jobs/s : plain Celery"],
        [
            [name, at, *_format_rate(load), f"{load.rate / plain.posts[at.split(',')[0]].rate:.2f}"]
            for name, result in named.items()
            for at, load in result.posts.items()
        ],
    )
    print_table(
        "Claims of queued runs; for Celery, processed tasks",
        ["storage", "processes", "claims/s", "p50 ms", "p95 ms", "claims/s : plain Celery"],
        [
            [name, str(at), *_format_rate(load), f"{load.rate / plain.claims[at].rate:.2f}"]
            for name, result in named.items()
            for at, load in result.claims.items()
        ],
    )
    print_table(
        "From POST to the claim by an idle worker, and from the end of one run to the claim of the next",
        ["storage", "start p50 ms", "p95 ms", "p50 : plain Celery", "next p50 ms", "p95 ms"],
        [
            [
                name,
                *_format_latencies(result.starts),
                f"{p50(result.starts) / p50(plain.starts):.1f}",
                *_format_latencies(result.handovers),
            ]
            for name, result in named.items()
        ],
    )


def _format_rate(load: LoadResult) -> list[str]:
    return [f"{load.rate:.0f}", *_format_latencies(load.latencies if any(load.latencies) else [])]


def _format_latencies(seconds: list[float]) -> list[str]:
    return [format_milliseconds(p50(seconds)), format_milliseconds(p95(seconds))] if seconds else ["–", "–"]


if __name__ == "__main__":
    main()
