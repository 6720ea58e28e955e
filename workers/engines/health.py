"""Engine health: its health endpoint, and a chat with each of its models, or an embedding."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from serving.engines import Engine, EngineRequestFailed
from trainers.configs import EngineTask

HEALTH_CHECK_SECONDS = 2.0
# An engine that is running but has not passed a health check for this long is restarted.
UNHEALTHY_SECONDS = 60.0
# One probe can time out behind a long queue of requests; this many in a row mean that requests hang.
MAX_FAILED_PROBES = 3
PROBE_RETRY_SECONDS = 5.0


@dataclass
class _Probe:
    """The next probe of a model, and how many have failed in a row."""

    due_at: float
    n_failed: int = 0


class EngineHealth:
    """Health of one start of an engine, whose models `list_names` returns by their names in requests."""

    def __init__(
        self,
        engine: Engine,
        address: str,
        list_names: Callable[[], Collection[str]],
        probe_seconds: float,
        timeout_seconds: float,
        task: EngineTask = EngineTask.generate,
    ) -> None:
        self._task = task
        self._engine = engine
        self._address = address
        self._list_names = list_names
        self._probe_seconds = probe_seconds
        self._timeout_seconds = timeout_seconds
        self._healthy_at = self._next_check_at = time.monotonic()
        self._probes: dict[str, _Probe] = {}

    def check(self) -> str | None:
        """Return why the engine must be restarted, or None; blocks while it probes at most one model."""
        now = time.monotonic()
        if now >= self._next_check_at:
            self._next_check_at = now + HEALTH_CHECK_SECONDS
            if self._engine.is_healthy(self._address):
                self._healthy_at = now
        if now - self._healthy_at > UNHEALTHY_SECONDS:
            return f"The engine has failed its health check for {UNHEALTHY_SECONDS:.0f} s."
        self._update_probes(now)
        due = [name for name, probe in self._probes.items() if now >= probe.due_at]
        return self._probe(min(due, key=lambda name: self._probes[name].due_at)) if due else None

    def _update_probes(self, now: float) -> None:
        """Add new models, which were probed when they became ready, and drop those that have left."""
        due_at = now + self._probe_seconds
        self._probes = {name: self._probes.get(name) or _Probe(due_at) for name in self._list_names()}

    def _probe(self, name: str) -> str | None:
        probe = self._probes[name]
        try:
            self._engine.probe(self._address, name, self._timeout_seconds, self._task)
        except EngineRequestFailed as error:
            probe.n_failed += 1
            probe.due_at = time.monotonic() + min(PROBE_RETRY_SECONDS, self._probe_seconds)
            if probe.n_failed >= MAX_FAILED_PROBES:
                return f"The engine failed {probe.n_failed} requests to {name} in a row: {error}"
        else:
            probe.n_failed = 0
            probe.due_at = time.monotonic() + self._probe_seconds
        return None
