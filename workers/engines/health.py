"""Whether an engine is well: it says so, and from time to time it has to prove it by one token."""

import time

from serving.engines import Engine, EngineRequestFailed

LOOK_SECONDS = 2.0
# An engine that is up but does not say that it is well for so long is started again.
UNHEALTHY_SECONDS = 60.0
# One probe may be late behind much work; so many in a row are not.
MOST_FAILED_PROBES = 3
PROBE_AGAIN_SECONDS = 5.0


class EngineHealth:
    """What is known of one start of an engine."""

    def __init__(self, engine: Engine, address: str, name: str, probe_seconds: float) -> None:
        self._engine = engine
        self._address = address
        self._name = name
        self._probe_seconds = probe_seconds
        self._said_at = self._look_at = time.monotonic()
        self._probe_at = self._look_at + probe_seconds
        self._failed_probes = 0

    def fault(self) -> str | None:
        """Why the engine is to be started again, if it is; takes as long as a token does."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            if self._engine.is_up(self._address):
                self._said_at = now
        if now - self._said_at > UNHEALTHY_SECONDS:
            return f"The engine has not said that it is well for {UNHEALTHY_SECONDS:.0f} s."
        return self._probe() if now >= self._probe_at else None

    def _probe(self) -> str | None:
        try:
            self._engine.probe(self._address, self._name)
        except EngineRequestFailed as refused:
            self._failed_probes += 1
            self._probe_at = time.monotonic() + PROBE_AGAIN_SECONDS
            if self._failed_probes >= MOST_FAILED_PROBES:
                return f"The engine gave no token {self._failed_probes} times in a row: {refused}"
        else:
            self._failed_probes = 0
            self._probe_at = time.monotonic() + self._probe_seconds
        return None
