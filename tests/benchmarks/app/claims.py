"""Concurrent claims of queued runs by several processes, as workers make them."""

import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

from app.runs import lifecycle
from app.storage.database import transaction
from app.tables import Job, Run, Worker
from tests.benchmarks.app.load import LoadResult
from trainers.configs import Queue, StageKind

# No other benchmark uses this queue, so exactly these runs are claimed.
QUEUE = Queue.mlx

_ready: Barrier


def claim_all(runs: int, processes: int) -> LoadResult:
    """Queue runs and let several processes claim them until none is left."""
    _queue(runs)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _set_barrier, [context.Barrier(processes)]) as pool:
        claimed = pool.map(_claim_until_empty, range(processes), chunksize=1)
    latencies = [latency for _, latencies, _ in claimed for latency in latencies]
    assert len(latencies) == runs, "every run must be claimed once"
    return LoadResult(latencies, max(end for _, _, end in claimed) - min(start for start, _, _ in claimed))


def _queue(runs: int) -> None:
    jobs = [Job(name="claims") for _ in range(runs)]
    values: dict[str, Any] = {
        "position": 0,
        "name": "sft",
        "stage": StageKind.sft,
        "queue": QUEUE,
        "config": {},
    }
    with transaction() as session:
        session.add_all(jobs)
        session.flush()
        session.add_all(Run(job_id=job.id, **values) for job in jobs)


def _set_barrier(ready: Barrier) -> None:
    global _ready
    _ready = ready


def _claim_until_empty(number: int) -> tuple[float, list[float], float]:
    # `perf_counter` has the same origin in all processes of a Linux host.
    worker = Worker(name=f"claims-{number}", host="here", pid=number, queues=[QUEUE], stages=[StageKind.sft])
    with transaction() as session:
        session.add(worker)
    _ready.wait()
    latencies = []
    started_at = ended_at = time.perf_counter()
    while _claim(worker.id):
        now = time.perf_counter()
        latencies.append(now - ended_at)
        ended_at = now
    return started_at, latencies, ended_at


def _claim(worker_id: str) -> bool:
    with transaction() as session:
        run = lifecycle.claim(session, worker_id, [QUEUE], [StageKind.sft], lease_seconds=3600)
    return run is not None
