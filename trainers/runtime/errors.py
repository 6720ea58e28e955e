"""The root of all errors, the errors of several programs, and the conversion of any exception to one.

An error that a single module raises is defined in that module.
"""

import errno
from collections.abc import Iterator, Sequence
from typing import Any

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.redaction import redact


class TunesmithError(Exception):
    """The root of all errors that a person can act on.

    `message` says what is wrong, and `hint` what to do.
    """

    code: ErrorCode = ErrorCode.internal_error

    def __init__(self, message: str, hint: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details
        """Values for programs to read; None if the code says all. It must not contain secrets."""

    def as_dict(self) -> dict[str, Any]:
        """Return the error as runs, deployments and the API show it, without secrets."""
        hint = redact(self.hint) if self.hint is not None else None
        error: dict[str, Any] = {"code": self.code, "message": redact(self.message), "hint": hint}
        return error if self.details is None else {**error, "details": self.details}


class ProgramError(TunesmithError):
    """A failure of a program, written to `error.json`."""


class ConfigInvalid(ProgramError):
    code = ErrorCode.config_invalid


class DatasetFileNotFound(ProgramError):
    code = ErrorCode.dataset_not_found


class DatasetInvalid(ProgramError):
    code = ErrorCode.dataset_invalid


class EngineFailed(ProgramError):
    code = ErrorCode.engine_failed


class DeviceUnavailable(ProgramError):
    code = ErrorCode.device_unavailable


class OutOfMemory(ProgramError):
    code = ErrorCode.out_of_memory


class DiskFull(ProgramError):
    code = ErrorCode.disk_full


class CollectiveFailed(ProgramError):
    code = ErrorCode.rank_lost


# On a full disk, torch's archive writer and safetensors raise errors without errno: only their text shows it.
DISK_FULL_PHRASES = (
    "No space left on device",
    "os error 28",
    "PytorchStreamWriter failed",
    "inline_container.cc",
    "iostream error",
)
OUT_OF_MEMORY_PHRASES = (
    "CUDA out of memory",
    "DefaultCPUAllocator",
    "not enough memory",
    "Cannot allocate memory",
)
# Torch's errors of collective operations, by class, and by text where it raises a plain RuntimeError.
COLLECTIVE_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")
COLLECTIVE_PHRASES = ("gloo/transport", "gloo/rendezvous", "NCCL error", "ncclRemoteError")


def as_program_error(error: BaseException) -> ProgramError:
    """Convert any exception to an error with a published code.

    A full disk or exhausted memory is recognized anywhere in the chain of causes: libraries wrap both.
    """
    if has_disk_full_cause(error):
        return DiskFull(
            "The disk is full: a file could not be written.",
            "Free space on the disk of the run directory, or lower keep_checkpoints; "
            "the run then resumes from its last complete checkpoint.",
        )
    if any(_is_out_of_memory(cause) for cause in _causes(error)):
        return OutOfMemory(
            f"The device ran out of memory: {first_line(error)}",
            "Lower micro_batch_size (batch_size, and with it the result, stays the same) or max_length.",
        )
    if isinstance(error, ProgramError):
        return error
    if any(_is_collective(cause) for cause in _causes(error)):
        return CollectiveFailed(
            f"The processes of the run have lost contact with each other: {first_line(error)}",
            "The run resumes from its last checkpoint. The log shows which process failed first.",
        )
    return ProgramError(
        f"{type(error).__name__}: {first_line(error)}",
        "This is a fault of the program. The traceback is at the end of log.txt.",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def join_names(names: Sequence[str], limit: int) -> str:
    """Return the first names and the number of the others, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def has_disk_full_cause(error: BaseException) -> bool:
    """Return whether the error or one of its causes is a full disk."""
    return any(_is_disk_full(cause) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(phrase in str(error) for phrase in DISK_FULL_PHRASES)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's class is recognized by its name, because this module must not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(
        phrase in str(error) for phrase in OUT_OF_MEMORY_PHRASES
    )


def _is_collective(error: BaseException) -> bool:
    return type(error).__name__ in COLLECTIVE_ERRORS or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in COLLECTIVE_PHRASES)
    )
