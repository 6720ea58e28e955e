"""Circuit breakers: an engine that fails repeatedly receives no requests for a while."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.gateway.routes import Target

FAILURES_TO_OPEN = 5
OPEN_SECONDS = 5.0
MAX_CIRCUITS = 1000


@dataclass(slots=True)
class Circuit:
    """Consecutive failures of a target, and the time until which it receives no requests."""

    failures: int = 0
    open_until: float = 0.0


class CircuitBreakers:
    """The circuits of the targets whose last request failed.

    Only failures of an engine count: failed connections, responses of 500 and above without Retry-After, and
    incomplete responses. Rejected requests and clients that disconnect do not count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.circuits: dict[Target, Circuit] = {}

    def open_targets(self) -> list[Target]:
        """Return the targets whose circuit is open."""
        now = self.clock()
        return [target for target, circuit in self.circuits.items() if circuit.open_until > now]

    def record_attempt(self, target: Target) -> None:
        """Record that a request is sent to the target.

        If the circuit was open, this request tests the engine. It opens the circuit again for all others
        until it succeeds.
        """
        circuit = self.circuits.get(target)
        if circuit is not None and circuit.failures >= FAILURES_TO_OPEN:
            circuit.open_until = self.clock() + OPEN_SECONDS

    def record_failure(self, target: Target) -> None:
        """Count a failure, and open the circuit after `FAILURES_TO_OPEN` in a row."""
        if len(self.circuits) >= MAX_CIRCUITS:
            # A removed engine receives no further request that could close its circuit.
            self.circuits.clear()
        circuit = self.circuits.setdefault(target, Circuit())
        circuit.failures += 1
        if circuit.failures >= FAILURES_TO_OPEN:
            circuit.open_until = self.clock() + OPEN_SECONDS

    def record_success(self, target: Target) -> None:
        """Close the circuit."""
        self.circuits.pop(target, None)

    def retry_after_seconds(self) -> int:
        """Return the seconds until the first open circuit accepts a request, at least 1."""
        now = self.clock()
        remaining = [circuit.open_until - now for circuit in self.circuits.values()]
        return max(1, math.ceil(min((seconds for seconds in remaining if seconds > 0), default=0)))
