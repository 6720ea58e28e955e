"""The offers of this worker to take part in runs on several hosts, one at a time."""

import logging
import random
import time
from collections.abc import Collection
from dataclasses import dataclass

from app.runs.groups.candidates import GroupChoice, choose_group
from app.runs.groups.formation import NodeOffer, find_rank, offer, withdraw
from app.runs.groups.members import update_member
from app.scheduling.queue import notify_after_commit
from app.storage.database import read_session, transaction
from app.tables import Run
from trainers.configs import Queue, StageKind
from workers.hosts.devices import Devices
from workers.hosts.worker import WorkerContext
from workers.runs.claim import ClaimedRun, claim_next, describe_free

# Enough workers are free when an offer is made, and poll every few seconds.
MAX_OFFER_SECONDS = 30.0
# After that, other runs and engines may use the devices before the next offer to the same run.
PAUSE_SECONDS = 30.0
# Of equal times, two workers that each wait for the other at another run would exchange the runs forever.
PAUSE_JITTER = 0.5

logger = logging.getLogger(__name__)


@dataclass
class _StandingOffer:
    made: NodeOffer
    queue: Queue
    devices: Devices
    made_at: float
    renewed_at: float


class GroupOffers:
    """Claims for this worker: runs that it executes alone, and those in which it takes part."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._standing: _StandingOffer | None = None
        self._paused_until: dict[str, float] = {}

    @property
    def is_standing(self) -> bool:
        """Whether an offer reserves devices of this worker, and must be polled."""
        return self._standing is not None

    def claim_next(
        self, full_queues: Collection[Queue] = (), full_stages: Collection[StageKind] = ()
    ) -> ClaimedRun | None:
        """Claim a run for this worker alone or for a group, or return one that another worker has claimed."""
        if self._worker.node_address is None:
            return claim_next(self._worker, full_queues, full_stages)
        if self._standing is not None:
            accepted = self._read_acceptance(self._standing)
            if accepted is not None:
                return accepted
        choice = self._choose(full_queues, full_stages)
        standing = self._standing
        is_other = standing is not None and (choice.run is None or choice.run.id != standing.made.run_id)
        if standing is not None and is_other and not self._withdraw(standing):
            return self._read_acceptance(standing)
        held = self._standing
        # A run that an offer's devices are reserved for is the only one on that queue.
        full = {*full_queues, held.queue} if held is not None else full_queues
        claimed = claim_next(self._worker, full, full_stages, choice.precedence)
        if claimed is not None or choice.run is None:
            return claimed
        return self._offer(choice.run)

    def close(self) -> None:
        """Withdraw the standing offer; a group that has accepted it meanwhile starts again."""
        if self._standing is None:
            return
        made = self._standing.made
        if not self._withdraw(self._standing):
            with transaction() as session:
                update_member(session, made.run_id, made.attempt, made.worker_id, is_stopping=True)

    def _choose(self, full_queues: Collection[Queue], full_stages: Collection[StageKind]) -> GroupChoice:
        now = time.monotonic()
        self._paused_until = {run: until for run, until in self._paused_until.items() if until > now}
        standing = self._standing
        if standing is not None and now - standing.made_at > MAX_OFFER_SECONDS:
            jitter = random.uniform(1 - PAUSE_JITTER, 1 + PAUSE_JITTER)  # noqa: S311
            self._paused_until[standing.made.run_id] = now + PAUSE_SECONDS * jitter
        worker = self._worker
        free_gpus = worker.devices.take_free()
        worker.devices.release(free_gpus)
        gpus = free_gpus.gpus + (standing.devices.gpus if standing is not None else ())
        stages = [stage for stage in worker.stages if stage not in full_stages]
        with read_session() as session:
            free = describe_free(worker, Devices(gpus), full_queues)
            return choose_group(
                session, worker.settings, worker.worker_id, worker.queues, stages, free, self._paused_until
            )

    def _offer(self, run: Run) -> ClaimedRun | None:
        """Make or renew the offer to a run; return the run if this worker has completed its group."""
        now = time.monotonic()
        is_new = self._standing is None
        if self._standing is None:
            devices = self._worker.devices.take(run.queue, run.device_count)
            if devices is None:
                return None
            address = self._worker.node_address
            assert address is not None
            made = NodeOffer(run.id, run.attempt + 1, self._worker.worker_id, address)
            self._standing = _StandingOffer(made, run.queue, devices, now, now)
        elif now - self._standing.renewed_at < self._worker.settings.heartbeat_seconds:
            return None
        standing = self._standing
        try:
            with transaction() as session:
                claimed = offer(session, self._worker.settings, standing.made)
                if claimed is None and is_new:
                    # The other workers that are free look for runs when they are notified, or poll.
                    notify_after_commit(session, run.queue)
        except BaseException:
            self._forget(standing)
            raise
        standing.renewed_at = now
        if claimed is None:
            return None
        self._standing = None
        logger.info("claimed for a group", extra={"run_id": claimed.id, "attempt": claimed.attempt})
        return ClaimedRun(claimed, standing.devices, now)

    def _read_acceptance(self, standing: _StandingOffer) -> ClaimedRun | None:
        """Return the run if another worker has completed the group; forget an offer that is void."""
        made = standing.made
        checked_at = time.monotonic()
        with read_session() as session:
            stands, rank = find_rank(session, made)
            run = session.get(Run, made.run_id) if stands and rank is not None else None
        if run is None:
            if not stands:
                self._forget(standing)
            return None
        assert rank is not None
        self._standing = None
        logger.info("joined a group", extra={"run_id": run.id, "attempt": run.attempt, "node_rank": rank})
        return ClaimedRun(run, standing.devices, min(checked_at, standing.renewed_at), rank)

    def _withdraw(self, standing: _StandingOffer) -> bool:
        """End an offer; return False if it was accepted before."""
        with transaction() as session:
            is_withdrawn = withdraw(session, standing.made)
        if is_withdrawn:
            self._forget(standing)
        return is_withdrawn

    def _forget(self, standing: _StandingOffer) -> None:
        self._standing = None
        self._worker.devices.release(standing.devices)
