"""Deployment manager: claims deployments, assigns them to engines, and puts idle ones to sleep."""

import logging
import time
from collections.abc import Sequence

from app.deployments import lifecycle as deployments
from app.scheduling.incidents import Incident
from app.scheduling.periodic import repeat
from app.storage.database import read_session, transaction
from app.tables import Deployment
from trainers.configs import EngineOptions, Queue
from workers.engines.deployment_runner import DeploymentRunner
from workers.engines.engine_process import EngineProcess, engine_key
from workers.engines.engine_start import POLL_SECONDS
from workers.engines.eviction import IdleEngine, choose_engines
from workers.hosts.launched_host import can_deploy
from workers.hosts.worker import WorkerContext

logger = logging.getLogger(__name__)


class DeploymentManager:
    """All deployments of one worker; each deployment has a thread, and so has each engine."""

    def __init__(self, worker: WorkerContext) -> None:
        self.worker = worker
        self.engines: dict[str, EngineProcess] = {}
        self.runners: list[DeploymentRunner] = []
        self._evicted: list[EngineProcess] = []
        self._claim_incident = Incident("claim of a deployment")

    def run(self) -> None:
        """Serve deployments until the worker stops, and wait until their engines have stopped."""
        pause = self.worker.wait_for_deployments
        repeat("deployments", self.poll, POLL_SECONDS, self.worker.stopping, pause=pause)
        for runner in self.runners:
            runner.thread.join()

    def poll(self) -> None:
        """Update the runners from SQL, free adapter slots, and claim waiting deployments."""
        self.runners = [runner for runner in self.runners if runner.thread.is_alive()]
        self.engines = {key: engine for key, engine in self.engines.items() if not engine.closing.is_set()}
        with read_session() as session:
            states = deployments.load_states(session, [runner.deployment.id for runner in self.runners])
            may_claim = can_deploy(session, self.worker.settings.host_id, self.worker.job_id)
            queues = self.worker.queues if may_claim else []
            waiting = deployments.list_claimable(session, self.worker.worker_id, queues)
        self._update_runners({state.id: state for state in states})
        for engine in self.engines.values():
            self._free_adapter_slots(engine)
        self._claim_all(
            [one for one in waiting if one.engine.capability in (None, *self.worker.capabilities)]
        )

    def _update_runners(self, states: dict[str, deployments.DeploymentState]) -> None:
        for runner in self.runners:
            state = states.get(runner.deployment.id)
            if state is None:
                # It ended for all others when its lease expired, and its row was deleted: the runner notices.
                continue
            runner.status = state.status
            used_at = [at for at in (state.last_used_at, state.ready_at) if at is not None]
            runner.unused_seconds = (state.now - max(used_at)).total_seconds() if used_at else 0.0
            if self._is_idle(runner):
                runner.sleep_requested.set()

    def _is_idle(self, runner: DeploymentRunner) -> bool:
        limit = runner.deployment.idle_seconds
        if not (runner.is_ready and 0 < limit < runner.unused_seconds):
            return False
        # The last deployment stops the engine with it, and `last_used_at` is the start of a request: a long
        # completion can still be in progress.
        is_last = sum(other.is_ready for other in self._runners_on(runner.engine_process)) == 1
        return not (is_last and runner.engine_process.is_busy)

    def _free_adapter_slots(self, engine: EngineProcess) -> None:
        """Put the least recently used deployments to sleep while others wait for an adapter slot."""
        runners = self._runners_on(engine)
        n_waiting = sum(runner.is_waiting_for_slot for runner in runners)
        ready = [runner for runner in runners if runner.has_adapter and runner.is_ready]
        staying = [runner for runner in ready if not runner.is_leaving]
        n_leaving = len(ready) - len(staying)
        staying.sort(key=lambda runner: runner.unused_seconds, reverse=True)
        for runner in staying[: max(0, n_waiting - n_leaving)]:
            runner.sleep_requested.set()

    def _claim_all(self, waiting: Sequence[Deployment]) -> None:
        """Claim deployments; one that cannot be claimed does not keep the others waiting."""
        failed: Exception | None = None
        for deployment in waiting:
            try:
                self._claim(deployment)
            except Exception as error:
                failed = error
        if failed is not None:
            self._claim_incident.record(failed)
        else:
            self._claim_incident.resolve()

    def _claim(self, waiting: Deployment) -> None:
        """Claim a deployment for the engine that has its base, or for a new one if devices are free."""
        engine = self._acquire_engine(waiting)
        if engine is None:
            return
        requested_at = time.monotonic()
        claimed = None
        try:
            with transaction() as session:
                claimed = deployments.claim(
                    session, waiting.id, self.worker.worker_id, self.worker.settings.lease_seconds
                )
        finally:
            if claimed is None:
                engine.release()
        if claimed is not None:
            self.engines[engine_key(claimed)] = engine
            runner = DeploymentRunner(self.worker, engine, claimed, requested_at)
            try:
                runner.thread.start()
            except RuntimeError:
                # The host has no thread left. The deployment is released when its lease ends.
                engine.release()
                raise
            self.runners.append(runner)

    def _acquire_engine(self, waiting: Deployment) -> EngineProcess | None:
        engine = self.engines.get(engine_key(waiting))
        if engine is not None and engine.acquire():
            return engine
        n_gpus = EngineOptions.model_validate(waiting.options).tensor_parallel
        devices = self.worker.devices.take(Queue(waiting.queue), n_gpus)
        if devices is None:
            self._evict(n_gpus)
            return None
        return EngineProcess(self.worker, waiting, devices)

    def _evict(self, n_gpus: int) -> None:
        """Put deployments to sleep that hold GPUs and are idle, if the settings allow it and it suffices."""
        if not self.worker.settings.evict_idle_seconds or self._is_any_leaving():
            # An engine that is stopping frees its GPUs soon.
            return
        idle = [one for key, engine in self.engines.items() if (one := self._find_idle(key, engine))]
        n_free = self.worker.devices.count_free()
        for chosen in choose_engines(idle, n_gpus, n_free):
            for runner in self._runners_on(self.engines[chosen.key]):
                logger.info("%s sleeps, because another needs its GPUs", runner.deployment.id)
                runner.sleep_requested.set()
            self._evicted.append(self.engines[chosen.key])

    def _is_any_leaving(self) -> bool:
        self._evicted = [engine for engine in self._evicted if not engine.stopped.is_set()]
        return bool(self._evicted)

    def _find_idle(self, key: str, engine: EngineProcess) -> IdleEngine | None:
        """Return the engine if it may be stopped; a deployment without a time of idleness never sleeps."""
        runners = self._runners_on(engine)
        if not runners or engine.n_gpus == 0 or engine.is_busy:
            return None
        unused_seconds = min(runner.unused_seconds for runner in runners)
        may_sleep = all(runner.is_ready and runner.deployment.idle_seconds > 0 for runner in runners)
        if not may_sleep or unused_seconds <= self.worker.settings.evict_idle_seconds:
            return None
        return IdleEngine(key, engine.n_gpus, unused_seconds)

    def _runners_on(self, engine: EngineProcess) -> list[DeploymentRunner]:
        return [
            runner for runner in self.runners if runner.engine_process is engine and runner.thread.is_alive()
        ]
