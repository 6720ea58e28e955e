"""Goal: a file passes the check of its header exactly if the safetensors library accepts it.

Method: files of the library pass; damaged ones, by hand and by Hypothesis, are refused whenever the library
refuses them.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from trainers.modeling.safetensors_file import SafetensorsInvalid, check_safetensors

TENSORS: dict[str, Any] = {
    "a": np.zeros((2, 3), np.float32),
    "b": np.ones(5, np.int8),
    "empty": np.zeros((0, 4), np.float16),
}
FILE = save(TENSORS, {"format": "pt"})
F32: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def encode(header: Any, n_data_bytes: int = 8, n_header_bytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (
        struct.pack("<Q", len(text) if n_header_bytes is None else n_header_bytes)
        + text
        + bytes(n_data_bytes)
    )


def is_accepted_by_library(path: Path) -> bool:
    try:
        with safe_open(path, framework="np"):
            return True
    except SafetensorError:
        return False


def is_accepted(path: Path) -> bool:
    try:
        check_safetensors(path)
    except SafetensorsInvalid:
        return False
    return True


def test_a_file_of_the_library_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILE)
    check_safetensors(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too short"),
        (encode({"a": F32}, n_header_bytes=2**63), "header would be longer"),
        (encode(b"x" * 100, n_header_bytes=99_999_999), "header would be longer"),
        (encode(b"[]"), "not an object"),
        (encode(b"{"), "not valid JSON"),
        (encode(b'{"a":' * 50_000), "not valid JSON"),
        (encode(b'{"a": 1, "a": 2}'), "twice"),
        (encode({"a": F32, "__metadata__": {"x": 1}}), "metadata"),
        (encode({"a": F32 | {"data_offsets": [0, 16]}}, 16), "size does not follow"),
        (encode({"a": F32 | {"dtype": "PICKLE"}}), "cannot be read"),
        (encode({"a": F32 | {"shape": [-1, -2]}}), "size does not follow"),
        (encode({"a": F32 | {"shape": [True, 2]}}), "size does not follow"),
        (encode({"a": F32 | {"data_offsets": [8, 0]}}), "size does not follow"),
        (encode({"a": F32 | {"data_offsets": [8, 16]}}, 16), "overlap, leave gaps"),
        (encode({"a": F32, "b": F32}), "overlap, leave gaps"),
        (encode({"a": F32}, 4), "exceed the file"),
        (encode({"a": F32}, 12), "exceed the file"),
        (b"PK\x03\x04" + bytes(100), "header would be longer"),
    ],
)
def test_a_damaged_header_is_refused_before_any_weight_is_read(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsInvalid, match=reason):
        check_safetensors(path)
    assert not is_accepted_by_library(path)


@given(st.integers(0, len(FILE) - 1), st.integers(0, 255))
def test_what_the_library_refuses_after_one_changed_byte_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(FILE[:position] + bytes([value]) + FILE[position + 1 :])
    assert is_accepted_by_library(path) or not is_accepted(path)
