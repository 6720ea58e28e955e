"""Errors of inputs, with which this worker cannot start a run or a deployment."""

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError

STORE_HINT = "Check that this worker's TUNESMITH_ARTIFACTS_URL equals the API's, and that the store is up."


class LaunchError(TunesmithError):
    """An input or a config with which this worker cannot start the run."""


class LaunchStopped(Exception):
    """The run or deployment whose inputs are being prepared must stop."""


class InputModelNotFound(LaunchError):
    code = ErrorCode.model_not_found


class InputDatasetNotFound(LaunchError):
    code = ErrorCode.dataset_not_found


class InputEvaluationNotFound(LaunchError):
    code = ErrorCode.evaluation_not_found


class InputUnreadable(LaunchError):
    code = ErrorCode.artifacts_unreachable


class InputCorrupt(LaunchError):
    code = ErrorCode.artifact_corrupt


class InputKernelsRefused(LaunchError):
    """Kernels that are absent, or whose code the operator of this host has not allowed."""

    code = ErrorCode.config_invalid


class InputRefused(LaunchError):
    """A model that is missing or unsafe, with the code of its check."""

    def __init__(self, error: TunesmithError) -> None:
        super().__init__(error.message, error.hint)
        self.code = error.code
