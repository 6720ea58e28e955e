"""The check of a safetensors file by its header, without reading or allocating a weight."""

import json
import struct
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

# A header takes about 100 bytes a tensor, and the largest models split their tensors over many files.
MAX_HEADER_BYTES = 32 << 20
METADATA = "__metadata__"
DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class SafetensorsInvalid(ValueError):
    """A file that is not a valid safetensors file; the message completes "its file … ."."""


def check_safetensors(path: Path) -> None:
    """Check that the header describes exactly the bytes of the file; raises SafetensorsInvalid or OSError."""
    read_header(path)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the description of each tensor, and where they begin; raises as `check_safetensors`."""
    n_file_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise SafetensorsInvalid("is too short for a safetensors file")
        (n_header_bytes,) = struct.unpack("<Q", start)
        if n_header_bytes > min(MAX_HEADER_BYTES, n_file_bytes - 8):
            raise SafetensorsInvalid("is not a safetensors file: its header would be longer than allowed")
        header = _parse_header(file.read(n_header_bytes))
    # MLX writes null where it has none.
    metadata = header.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsInvalid("has metadata that is not text")
    ranges = sorted(_byte_range(name, entry) for name, entry in header.items())
    edges = [(0, 0), *ranges, (n_file_bytes - 8 - n_header_bytes,) * 2]
    if any(end != begin for (_, end), (begin, _) in pairwise(edges)):
        raise SafetensorsInvalid("has tensors that overlap, leave gaps, or exceed the file")
    return header, 8 + n_header_bytes


def _parse_header(content: bytes) -> dict[str, Any]:
    try:
        header = json.loads(content, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise SafetensorsInvalid(f"has a header that is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise SafetensorsInvalid("has a header that is not an object")
    return header


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _byte_range(name: str, entry: Any) -> tuple[int, int]:
    """Return the range of a tensor's bytes, whose length must follow from its type and shape."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, begin, end]
        is_valid = all(type(size) is int and size >= 0 for size in sizes) and begin <= end
        n_bits = prod(shape) * DTYPE_BITS[dtype] if is_valid else -1
    except (KeyError, TypeError, ValueError) as error:
        raise SafetensorsInvalid(
            f"describes the tensor {name[:80]!r} in a way that cannot be read"
        ) from error
    if n_bits != 8 * (end - begin):
        raise SafetensorsInvalid(f"has a tensor {name[:80]!r} whose size does not follow from its shape")
    return begin, end
