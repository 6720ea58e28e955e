"""Errors that carry their status and code, and the published list of codes for runs."""

from enum import StrEnum
from typing import Any


class AppError(Exception):
    """A fault of the request, told in a full sentence; `hint` says what to do."""

    status_code = 400
    code = "bad_request"

    def __init__(
        self, message: str, *, hint: str | None = None, fields: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields


class Unauthorized(AppError):
    """No key, or one that is not known."""

    status_code = 401
    code = "unauthorized"


class Forbidden(AppError):
    """A known key without the scope that the request needs."""

    status_code = 403
    code = "forbidden"


class NotFound(AppError):
    """Nothing has this id."""

    status_code = 404
    code = "not_found"


class Conflict(AppError):
    """The request is well formed, but what it names is not in a state that allows it."""

    status_code = 409
    code = "conflict"


class TooLarge(AppError):
    """More bytes than the service accepts."""

    status_code = 413
    code = "too_large"


class Invalid(AppError):
    """A malformed payload; `fields` names each wrong field."""

    status_code = 422
    code = "invalid"


class RunErrorCode(StrEnum):
    """Why a run failed or was ended: the published list. The first part is written by programs."""

    config_invalid = "config_invalid"
    model_not_found = "model_not_found"
    adapter_unreadable = "adapter_unreadable"
    dataset_not_found = "dataset_not_found"
    dataset_invalid = "dataset_invalid"
    template_missing = "template_missing"
    device_unavailable = "device_unavailable"
    out_of_memory = "out_of_memory"
    disk_full = "disk_full"
    loss_not_finite = "loss_not_finite"
    preflight_failed = "preflight_failed"
    merge_differs = "merge_differs"
    engine_failed = "engine_failed"
    internal_error = "internal_error"

    program_killed = "program_killed"
    program_without_result = "program_without_result"
    artifacts_unreachable = "artifacts_unreachable"
    lease_lost = "lease_lost"
    deployment_failed = "deployment_failed"
    parity_failed = "parity_failed"
    earlier_stage_ended = "earlier_stage_ended"

    @property
    def infrastructure(self) -> bool:
        """Whether the fault lies with the machine, so that another attempt may succeed."""
        return self in {
            RunErrorCode.program_killed,
            RunErrorCode.program_without_result,
            RunErrorCode.artifacts_unreachable,
            RunErrorCode.lease_lost,
            RunErrorCode.engine_failed,
        }
