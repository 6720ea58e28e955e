"""The end of an attempt without a result, and the status of the run that follows from it."""

from dataclasses import dataclass
from typing import Any, Self

from app.storage.database import database_now
from app.tables import EventType, Run, RunStatus
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError

# Each failure since the last checkpoint adds this delay: a host that is restarting needs some time.
RETRY_DELAY_SECONDS = 10.0
# A hub or the way to it needs longer; nothing is lost meanwhile, and each attempt costs seconds.
HUB_RETRY_SECONDS = (5.0, 30.0, 120.0)


@dataclass(frozen=True)
class NewEvent:
    """An event without its number."""

    type: EventType
    data: dict[str, Any]
    step: int | None = None

    @classmethod
    def warning(cls, code: str, message: str, **fields: Any) -> Self:
        """Create a warning whose data also contains `fields`."""
        return cls(EventType.warning, {"code": code, "message": message, **fields})


@dataclass(frozen=True)
class AttemptOutcome:
    """The end of an attempt that produced no result: an error, or a program that stopped on request."""

    error: TunesmithError | None = None
    reason: str | None = None
    """Why the attempt ended without an error; written to the event."""
    smaller_config: dict[str, Any] | None = None
    """After `out_of_memory`: a config that needs less memory, if there is one."""
    warning: NewEvent | None = None
    """Written together with `smaller_config`."""
    needed_disk_bytes: int | None = None
    """After `disk_full`: the free space without which the next attempt would fail as well."""

    @property
    def code(self) -> ErrorCode | None:
        """The error's code."""
        return self.error.code if self.error is not None else None


def next_status(run: Run, end: AttemptOutcome, max_failures: int) -> tuple[RunStatus, dict[str, Any]]:
    """Return the status that follows by the table of `lifecycle.end_attempt`, and the columns that change."""
    if run.status is RunStatus.cancelling:
        return RunStatus.cancelled, {}
    is_pausing = run.status is RunStatus.pausing
    to = RunStatus.paused if is_pausing else RunStatus.queued
    if end.error is None or (end.error.code.infrastructure and is_pausing):
        return to, {}
    if end.error.code.infrastructure and run.failure_count < max_failures:
        delay = retry_delay(end.error.code, run.failure_count)
        changes: dict[str, Any] = {
            "failure_count": run.failure_count + 1,
            "claimable_at": database_now(delay) if delay else None,
        }
        if end.error.code is ErrorCode.hub_unreachable:
            # Shown while the run waits: a person may have to repair the network.
            changes["error"] = end.error.as_dict()
        return to, changes
    if end.smaller_config is not None:
        return to, {"config": end.smaller_config}
    if end.needed_disk_bytes is not None and is_pausing:
        return to, {"needed_disk_bytes": end.needed_disk_bytes}
    if end.needed_disk_bytes is not None:
        # The error is shown while the run waits. The delay bounds the retries where the disk of the artifact
        # store is the full one: its free space is unknown to workers.
        claimable_at = database_now(RETRY_DELAY_SECONDS)
        changes = {"needed_disk_bytes": end.needed_disk_bytes, "claimable_at": claimable_at}
        return to, {"error": end.error.as_dict(), **changes}
    return RunStatus.failed, {"error": end.error.as_dict()}


def retry_delay(code: ErrorCode, n_failures: int) -> float:
    """Return the seconds until the next attempt after an infrastructure failure that follows `n_failures`."""
    if code is ErrorCode.hub_unreachable:
        return HUB_RETRY_SECONDS[min(n_failures, len(HUB_RETRY_SECONDS) - 1)]
    return RETRY_DELAY_SECONDS * n_failures
