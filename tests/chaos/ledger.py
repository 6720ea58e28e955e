"""The ledger: an append-only file in which every attempt of the stand-in program reports what it does.

The ledger is independent of the service under test. All processes are on one host, so the entries of several
attempts can be compared by the monotonic clock.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Kind(StrEnum):
    """What an attempt reports."""

    begin = "begin"
    resumed = "resumed"
    step = "step"
    checkpoint = "checkpoint"
    end = "end"


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    run_id: str
    attempt: int
    pid: int
    kind: Kind
    step: int
    monotonic: float
    wall: float
    intact: bool = True
    """For `resumed`: whether the checkpoint contained exactly what was written for its step."""


class LedgerWriter:
    """Appends the entries of one attempt; a line is one write, so that attempts never mix their lines."""

    def __init__(self, path: Path, run_id: str, attempt: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._attempt: dict[str, Any] = {"run_id": run_id, "attempt": attempt, "pid": os.getpid()}

    def write(self, kind: Kind, step: int, *, intact: bool = True) -> None:
        """Append one entry."""
        entry = Entry(
            **self._attempt,
            kind=kind,
            step=step,
            monotonic=time.monotonic(),
            wall=time.time(),
            intact=intact,
        )
        os.write(self._file, json.dumps(asdict(entry)).encode() + b"\n")


def read_ledger(path: Path) -> list[Entry]:
    """Return all entries in the order in which they were written."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Entry(**line | {"kind": Kind(line["kind"])}) for line in lines]
