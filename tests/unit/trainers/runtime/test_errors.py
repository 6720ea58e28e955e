"""Goal: every failure of a program has a published code."""

import errno

import pytest
import torch

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import as_program_error


def test_full_disk_is_found_below_other_errors() -> None:
    wrapped = ValueError("The model could not be saved.")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert as_program_error(wrapped).code is ErrorCode.disk_full


def test_memory_that_torch_cannot_get_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    error = as_program_error(raised.value)
    assert error.code is ErrorCode.out_of_memory
    assert error.hint is not None and "micro_batch_size" in error.hint


def test_unknown_failure_is_internal_and_names_its_type() -> None:
    error = as_program_error(KeyError("weight"))
    assert (error.code, error.message) == (ErrorCode.internal_error, "KeyError: 'weight'")


def test_words_of_the_libraries_that_write_weights_mean_a_full_disk() -> None:
    words = [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
    ]
    assert {as_program_error(RuntimeError(word)).code for word in words} == {ErrorCode.disk_full}
