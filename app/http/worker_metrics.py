"""Metrics of workers, of their hosts' GPUs and disks, and of the queues that they serve, read from SQL."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import func, select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.runs.claimable import select_claimable
from app.settings import get_settings
from app.storage.database import database_now
from app.tables import Run, RunNeed
from app.workers.service import list_alive_workers
from trainers.configs import Queue

# Of each queue, the runs that were created first: the age of the oldest one is exact up to this number.
MAX_AGED_RUNS = 500
GPU_LABELS = ("host", "gpu", "name")


def add_worker_metrics(session: Session, registry: CollectorRegistry) -> None:
    """Add the live workers by queue, and the use of their hosts as of the last minute."""

    def gauge(name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(f"tunesmith_{name}", text, labels, registry=registry)

    alive = gauge("workers", "Live workers that serve a queue.", ["queue"])
    problems = gauge("worker_problems", "What fails in a live worker and is retried.", ["worker"])
    disk = gauge("worker_disk_free_bytes", "Free space of the disk of a worker's data directory.", ["worker"])
    total = gauge("gpu_memory_bytes", "Memory of a GPU of a live worker's host.", GPU_LABELS)
    used = gauge("gpu_memory_used_bytes", "Memory in use on a GPU, by any process.", GPU_LABELS)
    busy = gauge("gpu_use_ratio", "Share of the time in which a GPU was computing, from 0 to 1.", GPU_LABELS)
    workers = list_alive_workers(session, get_settings())
    for queue in Queue:
        alive.labels(queue).set(sum(queue in worker.queues for worker in workers))
    for worker in workers:
        problems.labels(worker.name).set(len(worker.problems))
        if (free := worker.hardware.get("data_disk_free_bytes")) is not None:
            disk.labels(worker.name).set(free)
        for gpu in worker.hardware.get("gpus", []):
            labels = worker.host, gpu["uuid"], gpu["name"]
            if gpu["memory_bytes"] is not None:
                total.labels(*labels).set(gpu["memory_bytes"])
            if gpu.get("used_bytes") is not None:
                used.labels(*labels).set(gpu["used_bytes"])
            if gpu.get("use_percent") is not None:
                busy.labels(*labels).set(gpu["use_percent"] / 100)


def add_queue_metrics(session: Session, registry: CollectorRegistry) -> None:
    """Add for how long the oldest run has been able to start; 0 where none waits."""
    age = Gauge(
        "tunesmith_queue_oldest_seconds",
        "Seconds for which the oldest queued run of a queue has been able to start.",
        ["queue"],
        registry=registry,
    )
    for queue in Queue:
        age.labels(queue).set(_measure_oldest(session, queue))


def _measure_oldest(session: Session, queue: Queue) -> float:
    """Return the age of the oldest run that can start, since it was posted or its last need ended."""
    needed = aliased(Run)
    needs_ended_at = (
        select(func.max(col(needed.finished_at)))
        .join(RunNeed, col(RunNeed.needed_id) == col(needed.id))
        .where(col(RunNeed.run_id) == col(Run.id))
        .correlate(Run)
        .scalar_subquery()
    )
    claimable = select_claimable([queue]).order_by(None).order_by(col(Run.created_at)).limit(MAX_AGED_RUNS)
    rows = session.execute(
        select(col(Run.created_at), col(Run.claimable_at), needs_ended_at, database_now()).where(
            col(Run.id).in_(claimable)
        )
    ).all()
    ages: list[float] = [(now - max(filter(None, times))).total_seconds() for *times, now in rows]
    return max([0.0, *ages])
