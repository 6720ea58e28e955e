"""Concurrent claims of queued runs by several processes, as workers make them, by two statements.

`select_then_update` is how runs were claimed before: it reads the first run and updates that one, so that
processes that claim at the same time want the same row, and all but one try again.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any

from sqlmodel import Session, col

from app.runs import lifecycle
from app.runs.claimable import select_claimable
from app.storage.database import database_now, transaction
from app.tables import Job, Run, RunStatus, Worker
from tests.benchmarks.app.load import LoadResult
from trainers.configs import Queue, StageKind

# No other benchmark uses this queue, so exactly these runs are claimed.
QUEUE = Queue.mlx
STAGES = [StageKind.sft]
LEASE_SECONDS = 3600.0

Claim = Callable[[Session, str], tuple[Run | None, int]]

_ready: Barrier


@dataclass(frozen=True)
class ClaimResult(LoadResult):
    """The claims of all processes, and how many UPDATEs of theirs changed no row."""

    n_wasted: int


def claim(session: Session, worker_id: str) -> tuple[Run | None, int]:
    """Claim the next run as workers do; an UPDATE that changed no row while a run was queued is wasted."""
    run = lifecycle.claim(session, worker_id, [QUEUE], STAGES, LEASE_SECONDS)
    if run is not None:
        return run, 0
    return None, int(session.scalar(select_claimable([QUEUE], STAGES).limit(1)) is not None)


def select_then_update(session: Session, worker_id: str) -> tuple[Run | None, int]:
    """Claim the next run by reading it first, and again when another process was faster."""
    n_wasted = 0
    while (run_id := session.scalar(select_claimable([QUEUE], STAGES).limit(1))) is not None:
        values = {
            "attempt": col(Run.attempt) + 1,
            "worker_id": worker_id,
            "lease_expires_at": database_now(LEASE_SECONDS),
            "started_at": database_now(),
        }
        queued = [RunStatus.queued]
        run = lifecycle.move(session, run_id, RunStatus.running, sources=queued, values=values)
        if run is not None:
            return run, n_wasted
        n_wasted += 1
    return None, n_wasted


def claim_all(runs: int, processes: int, claim_next: Claim = claim) -> ClaimResult:
    """Queue runs and let several processes claim them until none is left."""
    _queue(runs)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _set_barrier, [context.Barrier(processes)]) as pool:
        claimed = pool.starmap(_claim_until_empty, [(n, claim_next) for n in range(processes)], chunksize=1)
    latencies = [latency for _, latencies, _, _ in claimed for latency in latencies]
    assert len(latencies) == runs, "every run must be claimed once"
    seconds = max(end for _, _, end, _ in claimed) - min(start for start, _, _, _ in claimed)
    return ClaimResult(latencies, seconds, sum(n_wasted for *_, n_wasted in claimed))


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


def _claim_until_empty(number: int, claim_next: Claim) -> tuple[float, list[float], float, int]:
    # `perf_counter` has the same origin in all processes of a Linux host.
    worker = Worker(name=f"claims-{number}", host="here", pid=number, queues=[QUEUE], stages=list(STAGES))
    with transaction() as session:
        session.add(worker)
    _ready.wait()
    latencies: list[float] = []
    n_wasted = 0
    started_at = ended_at = time.perf_counter()
    while True:
        with transaction() as session:
            run, wasted = claim_next(session, worker.id)
        n_wasted += wasted
        if run is None and not wasted:
            return started_at, latencies, ended_at, n_wasted
        now = time.perf_counter()
        if run is not None:
            latencies.append(now - ended_at)
            ended_at = now
