"""Fixture to write a file of rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows, or the bytes of whole lines, to a JSONL file."""

    def _write(*rows: dict[str, Any] | bytes) -> Path:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows]
        path.write_bytes(b"".join(lines))
        return path

    return _write
