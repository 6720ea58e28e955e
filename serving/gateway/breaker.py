"""Circuit breakers: an engine that fails again and again is left alone for a while."""

import math
import time
from dataclasses import dataclass

from serving.gateway.routes import Target

FAULTS_TO_OPEN = 5
OPEN_SECONDS = 5.0
MOST_CIRCUITS = 1000


@dataclass(slots=True)
class Circuit:
    """How often a target has failed in a row, and until when it is left alone."""

    faults: int = 0
    open_until: float = 0.0


class CircuitBreakers:
    """The circuits of those targets that failed last.

    Only faults of an engine count: connections that fail, answers of 500 and above that do not say when to
    come back, and answers that break off; never a refused request or a client that left.
    """

    def __init__(self) -> None:
        self.circuits: dict[Target, Circuit] = {}

    def avoided(self) -> list[Target]:
        """The targets that are left alone now."""
        now = time.monotonic()
        return [target for target, circuit in self.circuits.items() if circuit.open_until > now]

    def asked(self, target: Target) -> None:
        """Note that a request goes to the target: of an open circuit it is the one that tries it.

        The others wait until that one has ended well, or for as long again.
        """
        circuit = self.circuits.get(target)
        if circuit is not None and circuit.faults >= FAULTS_TO_OPEN:
            circuit.open_until = time.monotonic() + OPEN_SECONDS

    def failed(self, target: Target) -> None:
        """Count a fault."""
        if len(self.circuits) >= MOST_CIRCUITS:
            # Engines that are gone are never asked again, and so never leave by themselves.
            self.circuits.clear()
        circuit = self.circuits.setdefault(target, Circuit())
        circuit.faults += 1
        if circuit.faults >= FAULTS_TO_OPEN:
            circuit.open_until = time.monotonic() + OPEN_SECONDS

    def succeeded(self, target: Target) -> None:
        """Close the circuit."""
        self.circuits.pop(target, None)

    def retry_after_seconds(self) -> int:
        """When the first of the targets that are left alone is tried again."""
        now = time.monotonic()
        times = [circuit.open_until - now for circuit in self.circuits.values()]
        return max(1, math.ceil(min((left for left in times if left > 0), default=0)))
