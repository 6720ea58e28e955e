"""The gate before the claims of a worker whose artifact store has failed.

Without it, a store that is away for a minute, or credentials that were changed, would cost each queued run
all the failures that it may have. So one failure closes the gate, and a check of the store opens it.
"""

from collections.abc import Callable

from app.scheduling.incidents import Incident
from app.scheduling.startup import STORE_CHECK


class StoreGate:
    """Whether a worker may claim runs; until the store works, the worker shows the failure as a problem."""

    def __init__(self, check: Callable[[], None] = STORE_CHECK.run) -> None:
        self._check = check
        self._incident = Incident("artifact store", consequence="; no run is claimed until it works")
        self._is_open = True

    def close(self, error: BaseException) -> None:
        """Let no run be claimed before a check of the store succeeds."""
        self._is_open = False
        self._incident.record(error)

    def is_open(self) -> bool:
        """Return whether runs may be claimed; a closed gate checks the store, for at most seconds."""
        if self._is_open:
            return True
        try:
            self._check()
        except Exception as error:
            self._incident.record(error)
            return False
        self._is_open = True
        self._incident.resolve()
        return True
