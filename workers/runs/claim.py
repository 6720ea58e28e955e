"""Claim of the next run that a worker can take, with the devices that it needs."""

import logging
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass

from app.runs import lifecycle
from app.runs.claimable import FreeResources, Precedence
from app.storage.database import transaction
from app.tables import Run
from trainers.configs import Queue, StageKind
from workers.hosts.devices import Devices, count_usable
from workers.hosts.worker import WorkerContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClaimedRun:
    """A run that this worker holds, and the devices that it reserved for it."""

    run: Run
    devices: Devices
    claimed_at: float
    """Monotonic time before the claim: the lease can only end later than one counted from here."""
    node_rank: int = 0
    """Of a run on several hosts: 0 for the leader, which alone writes the run's status."""


def claim_next(
    worker: WorkerContext,
    full_queues: Collection[Queue] = (),
    full_stages: Collection[StageKind] = (),
    precedence: Precedence | None = None,
) -> ClaimedRun | None:
    """Claim the first run that this worker can take alone; None if there is none.

    On `full_queues` only runs that need no device are taken, and of `full_stages` none; with `precedence`,
    only those ahead of that run. The free GPUs are reserved before the claim, so that no
    engine, and no other worker of this host, can take the run's GPUs meanwhile.
    """
    devices = worker.devices.take_free()
    try:
        claimed_at = time.monotonic()
        with transaction() as session:
            run = lifecycle.claim(
                session,
                worker.worker_id,
                worker.queues,
                [stage for stage in worker.stages if stage not in full_stages],
                worker.settings.lease_seconds,
                describe_free(worker, devices, full_queues),
                worker.settings.max_overtake_seconds,
                precedence,
            )
    except BaseException:
        worker.devices.release(devices)
        raise
    if run is None:
        worker.devices.release(devices)
        return None
    logger.info("claimed", extra={"run_id": run.id, "attempt": run.attempt, "stage": run.stage})
    n_gpus = run.device_count if run.queue is Queue.cuda else 0
    return ClaimedRun(run, worker.devices.keep(devices, n_gpus), claimed_at)


def describe_free(
    worker: WorkerContext, devices: Devices, full_queues: Collection[Queue] = ()
) -> FreeResources:
    """Return what is free on this host, if the devices are."""
    return FreeResources(
        gpus=count_usable(devices.gpus),
        max_gpus=worker.devices.max_gpus,
        disk_bytes=shutil.disk_usage(worker.settings.data_dir).free,
        capabilities=frozenset(worker.capabilities),
        host_id=worker.settings.host_id or None,
        job_id=worker.job_id,
        full_queues=frozenset(full_queues),
    )
