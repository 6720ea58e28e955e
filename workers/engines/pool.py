"""The engines of this worker and the deployments on them: who comes in, who goes to sleep."""

import logging
import time
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from app.deployments import lifecycle as deployments
from app.deployments.lifecycle import DeploymentState
from app.storage.database import read_session, transaction
from app.tables import Deployment
from trainers.configs import EngineOptions, Queue
from workers.engines.deployment_runner import DeploymentRunner
from workers.engines.engine_process import EngineProcess, engine_key
from workers.hosts.worker import WorkerContext

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


class DeploymentManager:
    """Looks after all deployments of one worker; each has a thread, and each engine has one."""

    def __init__(self, host: WorkerContext) -> None:
        self.host = host
        self.keepers: dict[str, EngineProcess] = {}
        self.tenants: list[DeploymentRunner] = []

    def run(self) -> None:
        """Take deployments until the worker stops, and wait until their engines have stopped."""
        while not self.host.stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except DBAPIError as error:
                logger.warning("cannot look for deployments: %s", error.orig)
        for tenant in self.tenants:
            tenant.thread.join()

    def look(self) -> None:
        """One round: tell deployments how they stand, make room, take those that wait."""
        self.tenants = [tenant for tenant in self.tenants if tenant.thread.is_alive()]
        self.keepers = {key: keeper for key, keeper in self.keepers.items() if not keeper.closing.is_set()}
        with read_session() as session:
            standings = deployments.load_states(session, [tenant.deployment.id for tenant in self.tenants])
            waiting = deployments.list_claimable(session, self.host.worker_id, self.host.queues)
        self._tell({standing.id: standing for standing in standings})
        for keeper in self.keepers.values():
            self._make_room(keeper)
        for deployment in waiting:
            self._take(deployment)

    def _tell(self, standings: dict[str, DeploymentState]) -> None:
        for tenant in self.tenants:
            standing = standings[tenant.deployment.id]
            tenant.status = standing.status
            used = [at for at in (standing.last_used_at, standing.ready_at) if at is not None]
            tenant.unused_seconds = (standing.now - max(used)).total_seconds() if used else 0.0
            if self._is_idle(tenant):
                tenant.rest.set()

    def _is_idle(self, tenant: DeploymentRunner) -> bool:
        limit = tenant.deployment.idle_seconds
        if not (tenant.is_ready and 0 < limit < tenant.unused_seconds):
            return False
        # The last takes the engine with it, and a long answer may have begun before it counted as idle.
        is_last = sum(other.is_ready for other in self._on(tenant.keeper)) == 1
        return not (is_last and tenant.keeper.is_busy)

    def _make_room(self, keeper: EngineProcess) -> None:
        """Send those to sleep that were not used for longest, if others wait for their places."""
        tenants = self._on(keeper)
        wanted = sum(tenant.wants_room for tenant in tenants)
        adapters = [tenant for tenant in tenants if tenant.has_adapter and tenant.is_ready]
        awake = [tenant for tenant in adapters if not tenant.is_leaving]
        awake.sort(key=lambda tenant: tenant.unused_seconds, reverse=True)
        for tenant in awake[: max(0, wanted - len(adapters) + len(awake))]:
            tenant.rest.set()

    def _take(self, waiting: Deployment) -> None:
        """Claim a deployment into the engine that has its base, else into a new one if devices are free."""
        keeper = self._enter(waiting)
        if keeper is None:
            return
        asked_at = time.monotonic()
        claimed = None
        try:
            with transaction() as session:
                claimed = deployments.claim(
                    session, waiting.id, self.host.worker_id, self.host.settings.lease_seconds
                )
        finally:
            if claimed is None:
                keeper.leave()
        if claimed is not None:
            self.keepers[engine_key(claimed)] = keeper
            tenant = DeploymentRunner(self.host, keeper, claimed, asked_at)
            self.tenants.append(tenant)
            tenant.thread.start()

    def _enter(self, waiting: Deployment) -> EngineProcess | None:
        keeper = self.keepers.get(engine_key(waiting))
        if keeper is not None and keeper.enter():
            return keeper
        count = EngineOptions.model_validate(waiting.options).tensor_parallel
        gpus = self.host.devices.take(Queue(waiting.queue), count)
        return None if gpus is None else EngineProcess(self.host, waiting, gpus)

    def _on(self, keeper: EngineProcess) -> Sequence[DeploymentRunner]:
        return [tenant for tenant in self.tenants if tenant.keeper is keeper and tenant.thread.is_alive()]
