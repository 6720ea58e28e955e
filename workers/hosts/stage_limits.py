"""The limits of a run's program: those of this worker and of its stage, and the error that reports one."""

from app.settings import Settings
from app.tables import Run
from trainers.configs import AnyStage
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts.resource_limits import ExceededLimit, ResourceLimits

SETTING = "TUNESMITH_STAGE_LIMITS"


class LimitExceeded(TunesmithError):
    """The program used more than a limit allows."""


class TimeLimitExceeded(LimitExceeded):
    code = ErrorCode.time_limit


class MemoryLimitExceeded(LimitExceeded):
    code = ErrorCode.memory_limit


class DiskLimitExceeded(LimitExceeded):
    code = ErrorCode.disk_limit


_ERRORS: dict[str, tuple[type[LimitExceeded], str, str]] = {
    "max_seconds": (TimeLimitExceeded, "ran for {measured:,.0f} s", "{allowed:,.0f} s"),
    "max_memory_bytes": (MemoryLimitExceeded, "used {measured:,.0f} bytes of memory", "{allowed:,.0f}"),
    "max_disk_bytes": (DiskLimitExceeded, "wrote {measured:,.0f} bytes of files", "{allowed:,.0f}"),
}


def choose_limits(run: Run, config: AnyStage, settings: Settings, folder: str) -> ResourceLimits:
    """Return the lower of the stage's limits and those of this worker, which may differ from the API's."""
    limits = settings.limits_of(run.stage).lowered_by(config.limits)
    return ResourceLimits(**limits.model_dump(), folder=folder, grace_seconds=settings.pause_grace_seconds)


def explain_limit(run: Run, config: AnyStage, exceeded: ExceededLimit) -> LimitExceeded:
    """Return the error of a run whose program has exceeded a limit."""
    kind, used, allowed = _ERRORS[exceeded.limit]
    values = {"measured": exceeded.measured, "allowed": exceeded.allowed}
    own = config.limits is not None and getattr(config.limits, exceeded.limit) == exceeded.allowed
    source = "the stage's limits" if own else f"this worker's {SETTING}"
    message = (
        f"The program of {run.id} {used.format(**values)}; {exceeded.limit} in {source} is "
        f"{allowed.format(**values)}."
    )
    if own:
        return kind(message, f"Raise {exceeded.limit} in the stage's `limits`, at most to that of {SETTING}.")
    return kind(
        message,
        f"Give the stage less to do, or raise {exceeded.limit} of {run.stage} in {SETTING} on the worker.",
    )
