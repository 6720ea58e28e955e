"""Incidents: failures of background work, logged once, counted, and shown in health until they end."""

import logging
import math
import threading
import time

from prometheus_client import Counter
from sqlalchemy.exc import DBAPIError

from trainers.runtime.redaction import redact

FAILURE_COUNT = Counter(
    "tunesmith_thread_failures", "Failures of background work, which continues after each.", ["work"]
)
MAX_REASON_CHARACTERS = 300
BROKER_PACKAGES = ("kombu", "redis")

logger = logging.getLogger(__name__)


class Incident:
    """Failures of one kind of work, from the first one until the work succeeds again.

    `subject` is the run or deployment that is worked on, and `consequence` what the failures mean for users.
    """

    def __init__(self, work: str, *, subject: str = "", consequence: str = "") -> None:
        self._work = work
        self._name = f"{work} of {subject}" if subject else work
        self._consequence = consequence
        self._n_failures = 0
        self._kind: type[BaseException] | None = None
        self._reason = ""
        self._failed_at = -math.inf
        self._lock = threading.Lock()

    def record(self, error: BaseException) -> None:
        """Count a failure, and log it unless the last one was of the same type."""
        with self._lock:
            is_new = not self._n_failures or type(error) is not self._kind
            self._n_failures += 1
            self._kind, self._reason = type(error), describe_error(error)
            self._failed_at = time.monotonic()
            _OPEN[id(self)] = self
        if is_new:
            report_failure(self._work, self._name, error, self._consequence)
        else:
            FAILURE_COUNT.labels(self._work).inc()

    def resolve(self) -> None:
        """End the incident, if there is one."""
        if not self._n_failures:
            return
        with self._lock:
            n_failures, self._n_failures = self._n_failures, 0
            _OPEN.pop(id(self), None)
        logger.info("%s works again after %s", self._name, _count(n_failures))

    def forget(self) -> None:
        """End the incident without logging it: the work has ended."""
        with self._lock:
            self._n_failures = 0
            _OPEN.pop(id(self), None)

    @property
    def seconds_since_failure(self) -> float:
        """The time since the last failure; infinite without an incident."""
        return time.monotonic() - self._failed_at if self._n_failures else math.inf

    def describe(self) -> str:
        """Return what fails and why, as a line for people."""
        return f"{self._name}: {_count(self._n_failures)}, the last one: {self._reason}"


_OPEN: dict[int, Incident] = {}


def list_problems() -> list[str]:
    """Return the incidents of this process that have not ended, each as a line for people."""
    return [incident.describe() for incident in list(_OPEN.values())]


def report_failure(work: str, name: str, error: BaseException, consequence: str = "") -> None:
    """Count and log one failure; `work` labels the metric, and must not contain an id."""
    FAILURE_COUNT.labels(work).inc()
    # A server or disk that is unavailable needs no traceback; any other error may be a bug.
    is_expected = isinstance(error, DBAPIError | OSError) or _package(error) in BROKER_PACKAGES
    traceback = None if is_expected else error
    logger.error("%s failed: %s%s", name, describe_error(error), consequence, exc_info=traceback)


def describe_error(error: BaseException) -> str:
    """Return the type and the first line of an error, without secrets."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    line = (str(cause).strip().splitlines() or [""])[0]
    name = type(cause).__name__
    return redact(f"{name}: {line}" if line else name)[:MAX_REASON_CHARACTERS].rstrip(".")


def report_thread_deaths() -> None:
    """Make an exception that ends a thread an incident: no thread of this service may end that way."""

    def record(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None and not issubclass(ended.exc_type, SystemExit):
            name = ended.thread.name if ended.thread is not None else "unknown"
            Incident("thread", subject=name, consequence="; the thread has ended").record(ended.exc_value)

    threading.excepthook = record


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _count(n_failures: int) -> str:
    return "1 failure" if n_failures == 1 else f"{n_failures} failures"
