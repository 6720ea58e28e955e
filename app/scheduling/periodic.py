"""Work that threads repeat, whatever it raises."""

import random
import threading
from collections.abc import Callable

from app.scheduling.incidents import Incident

MIN_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 10.0


def repeat(
    name: str,
    action: Callable[[], object],
    seconds: float,
    stopping: threading.Event,
    *,
    max_seconds: float = MAX_BACKOFF_SECONDS,
    jitter: float = 0.0,
    pause: Callable[[float], object] | None = None,
) -> None:
    """Call a function at an interval until `stopping` is set.

    `pause` waits for so many seconds, or less if there is something to do. After a failure the interval
    doubles, up to `max_seconds`; the failures are an incident in the log, the metrics and the health of the
    process.
    """
    incident, delay = Incident(name), seconds
    pause = pause or stopping.wait
    while True:
        pause(delay * random.uniform(1 - jitter, 1 + jitter))  # noqa: S311
        if stopping.is_set():
            break
        try:
            action()
        except Exception as error:
            incident.record(error)
            delay = max(seconds, min(max(2 * delay, MIN_BACKOFF_SECONDS), max_seconds))
        else:
            incident.resolve()
            delay = seconds
    incident.forget()


class PeriodicThread:
    """A thread that repeats a function until it is stopped; see `repeat`."""

    def __init__(
        self,
        name: str,
        action: Callable[[], object],
        seconds: float,
        *,
        max_seconds: float = MAX_BACKOFF_SECONDS,
        jitter: float = 0.0,
    ) -> None:
        self._stopping = threading.Event()
        options = {"max_seconds": max_seconds, "jitter": jitter}
        arguments = name, action, seconds, self._stopping
        self._thread = threading.Thread(target=repeat, args=arguments, kwargs=options, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current call, and wait for it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
