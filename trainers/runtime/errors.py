"""The root of all errors, the errors of programs, and the conversion of any exception to one of them."""

import errno
from collections.abc import Iterator

from trainers.runtime.error_codes import ErrorCode


class TunesmithError(Exception):
    """The root of all errors that a person can act on.

    `message` says what is wrong, and `hint` what to do.
    """

    code: ErrorCode = ErrorCode.internal_error

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, str | None]:
        """Return the error as runs, deployments and the API show it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class ProgramError(TunesmithError):
    """A failure of a program, written to `error.json`."""


class ConfigInvalid(ProgramError):
    code = ErrorCode.config_invalid


class BaseModelNotFound(ProgramError):
    code = ErrorCode.model_not_found


class AdapterUnreadable(ProgramError):
    code = ErrorCode.adapter_unreadable


class DatasetFileNotFound(ProgramError):
    code = ErrorCode.dataset_not_found


class DatasetInvalid(ProgramError):
    code = ErrorCode.dataset_invalid


class TemplateMissing(ProgramError):
    code = ErrorCode.template_missing


class MergeDiffers(ProgramError):
    code = ErrorCode.merge_differs


class EngineFailed(ProgramError):
    code = ErrorCode.engine_failed


class PreflightFailed(ProgramError):
    code = ErrorCode.preflight_failed


class DeviceUnavailable(ProgramError):
    code = ErrorCode.device_unavailable


class OutOfMemory(ProgramError):
    code = ErrorCode.out_of_memory


class DiskFull(ProgramError):
    code = ErrorCode.disk_full


class LossNotFinite(ProgramError):
    code = ErrorCode.loss_not_finite


# torch's archive writer reports a failed write by these words only; a full disk is why it fails.
DISK_FULL_WORDS = (
    "No space left on device",
    "os error 28",
    "PytorchStreamWriter failed",
    "inline_container.cc",
    "iostream error",
)
OUT_OF_MEMORY_WORDS = (
    "CUDA out of memory",
    "DefaultCPUAllocator",
    "not enough memory",
    "Cannot allocate memory",
)


def as_program_error(error: BaseException) -> ProgramError:
    """Name the failure; a full disk or memory is found anywhere in the chain of causes."""
    causes = list(_chain(error))
    if any(_is_disk_full(cause) for cause in causes):
        return DiskFull(
            "The disk is full, so a file could not be written.",
            "Free space on the disk of the run directory, or keep fewer checkpoints; "
            "the run then resumes from its last complete checkpoint.",
        )
    if any(_is_out_of_memory(cause) for cause in causes):
        return OutOfMemory(
            f"The device ran out of memory: {_first_line(error)}",
            "Lower micro_batch_size (batch_size, and so the result, may stay as it is) or max_length.",
        )
    if isinstance(error, ProgramError):
        return error
    return ProgramError(
        f"{type(error).__name__}: {_first_line(error)}",
        "This is a fault of the program. The end of log.txt holds the traceback.",
    )


def has_disk_full_cause(error: BaseException) -> bool:
    """Tell whether a full disk is the error or one of its causes."""
    return any(_is_disk_full(cause) for cause in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(word in str(error) for word in DISK_FULL_WORDS)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's class is told by its name, so that this module stays free of torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(
        word in str(error) for word in OUT_OF_MEMORY_WORDS
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
