"""Lines that a program appends to the files of its run directory, read as far as they hold.

The program is not trusted: what it writes is validated, and a line that does not hold is left out.
"""

import logging
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from trainers.runtime.events import ProgramEvent
from trainers.runtime.run_dir import CheckpointRecord

MAX_READ_BYTES = 4 << 20

logger = logging.getLogger(__name__)

T = TypeVar("T")

EVENT: TypeAdapter[ProgramEvent] = TypeAdapter(ProgramEvent)
CHECKPOINT = TypeAdapter(CheckpointRecord)


class FileTail:
    """Reads what was appended to a file since the last time, whole lines only."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read(self, *, to_end: bool = False, newest: bool = False) -> str:
        """New lines; with `to_end` also a last one without its newline.

        Of more than `MAX_READ_BYTES` it answers the first and goes on from there the next time, or with
        `newest` the last.
        """
        if not self._path.is_file():
            return ""
        if newest:
            self._offset = max(self._offset, self._path.stat().st_size - MAX_READ_BYTES)
        with self._path.open("rb") as file:
            file.seek(self._offset)
            read = file.read(MAX_READ_BYTES)
        whole = read.rfind(b"\n") + 1
        if len(read) == MAX_READ_BYTES:
            whole = whole or len(read)
        elif to_end:
            whole = len(read)
        self._offset += whole
        # PostgreSQL's JSON holds no NUL.
        return read[:whole].decode("utf-8", "replace").replace("\0", "\ufffd")


def parse_lines(kind: TypeAdapter[T], text: str) -> list[T]:
    """The lines that hold; a program that was killed leaves the last one torn."""
    values, refused = [], 0
    # JSON strings may hold characters at which splitlines() would split.
    for line in text.split("\n"):
        try:
            if line.strip():
                values.append(kind.validate_json(line))
        except ValidationError:
            refused += 1
    if refused:
        logger.warning("%d lines of a program were left out: they are no events", refused)
    return values
