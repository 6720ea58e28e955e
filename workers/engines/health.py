"""Engine health: periodic health checks, and a probe that generates one token."""

import time

from serving.engines import Engine, EngineRequestFailed

HEALTH_CHECK_SECONDS = 2.0
# An engine that is running but has not passed a health check for this long is restarted.
UNHEALTHY_SECONDS = 60.0
# One probe can time out behind a long queue of requests; this many in a row mean that the engine hangs.
MAX_FAILED_PROBES = 3
PROBE_RETRY_SECONDS = 5.0


class EngineHealth:
    """Health of one start of an engine."""

    def __init__(self, engine: Engine, address: str, model_name: str, probe_seconds: float) -> None:
        self._engine = engine
        self._address = address
        self._model_name = model_name
        self._probe_seconds = probe_seconds
        self._healthy_at = self._next_check_at = time.monotonic()
        self._next_probe_at = self._next_check_at + probe_seconds
        self._failed_probes = 0

    def check(self) -> str | None:
        """Return why the engine must be restarted, or None; blocks while a probe generates its token."""
        now = time.monotonic()
        if now >= self._next_check_at:
            self._next_check_at = now + HEALTH_CHECK_SECONDS
            if self._engine.is_healthy(self._address):
                self._healthy_at = now
        if now - self._healthy_at > UNHEALTHY_SECONDS:
            return f"The engine has failed its health check for {UNHEALTHY_SECONDS:.0f} s."
        return self._probe() if now >= self._next_probe_at else None

    def _probe(self) -> str | None:
        try:
            self._engine.probe(self._address, self._model_name)
        except EngineRequestFailed as error:
            self._failed_probes += 1
            self._next_probe_at = time.monotonic() + PROBE_RETRY_SECONDS
            if self._failed_probes >= MAX_FAILED_PROBES:
                return f"The engine failed {self._failed_probes} probes in a row: {error}"
        else:
            self._failed_probes = 0
            self._next_probe_at = time.monotonic() + self._probe_seconds
        return None
