"""The result of a conversion, and the file that it writes."""

import json
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, Final

from trainers.data.faults import Fault, FaultCode
from trainers.data.files.jsonl import MAX_LINE_BYTES

# After so many unreadable rows the file is of another kind, or was cut.
MAX_FAULTY_ROWS: Final = 1000
EMPTY_LINE: Final = b"{}\n"


class SourceFormat(StrEnum):
    """Format of an uploaded file that is not JSON Lines."""

    csv = "csv"
    json_array = "json_array"
    parquet = "parquet"


class SourceLines:
    """The line of the source in which each row begins: only the rows at which their difference changes."""

    def __init__(self) -> None:
        self._rows, self._lines = array("Q"), array("Q")

    def add(self, row: int, line: int) -> None:
        """Record the line of the next row."""
        if not self._rows or line - row != self._lines[-1] - self._rows[-1]:
            self._rows.append(row)
            self._lines.append(line)

    def find(self, row: int) -> int | None:
        """Return the line of a row, or None for a source whose rows have no lines."""
        index = bisect_right(self._rows, row) - 1
        return self._lines[index] + row - self._rows[index] if index >= 0 else None


@dataclass(frozen=True)
class Conversion:
    """How a file was converted: the rows that could not be, and the fault that ended it, if any."""

    source: SourceFormat
    row_faults: dict[int, Fault] = field(default_factory=dict)
    file_fault: Fault | None = None
    lines: SourceLines = field(default_factory=SourceLines)


class SourceUnreadable(Exception):
    """The rest of the file cannot be converted."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class LineWriter:
    """Writes rows as lines of JSON, with an empty object in place of each row that has a fault."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.row_faults: dict[int, Fault] = {}
        self.lines = SourceLines()
        self.rows = 0
        self._file = file
        self._left = max_bytes
        self._max_bytes = max_bytes

    def begin_row(self, line: int) -> None:
        """Record the line of the source in which the next row begins."""
        self.lines.add(self.rows + 1, line)

    def write_row(self, row: dict[str, Any], place: str) -> None:
        """Write the next row; `place` says where it is in the source, for a fault."""
        try:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            message = (
                f"{place} contains bytes that are not text in the file's encoding: correct them, or send the "
                "right `encoding` (`--encoding` of the command line)."
            )
            self.add_fault(FaultCode.invalid_utf8, message)
        else:
            self.write_line(line, place)

    def write_line(self, line: bytes, place: str) -> None:
        """Write the next row, which is a line of JSON already."""
        if len(line) > MAX_LINE_BYTES:
            self.add_fault(
                FaultCode.line_too_long, f"{place} has more than {MAX_LINE_BYTES:,} bytes: split it."
            )
        else:
            self.rows += 1
            self._write(line)

    def add_fault(self, code: FaultCode, message: str) -> None:
        """Record that the next row cannot be converted; raises SourceUnreadable after too many."""
        self.rows += 1
        self.row_faults[self.rows] = Fault(code=code, message=message)
        self._write(EMPTY_LINE)
        if len(self.row_faults) >= MAX_FAULTY_ROWS:
            raise SourceUnreadable(
                Fault(
                    code=code,
                    message=f"{MAX_FAULTY_ROWS:,} of the first {self.rows:,} rows cannot be converted, the "
                    f"last because: {message}",
                )
            )

    def _write(self, line: bytes) -> None:
        self._left -= len(line)
        if self._left < 0:
            raise SourceUnreadable(too_large_fault(self._max_bytes))
        self._file.write(line)


def too_large_fault(max_bytes: int) -> Fault:
    """Return the fault of a file whose rows need more space than an upload may have."""
    return Fault(
        code=FaultCode.converted_too_large,
        message=f"The rows have more than {max_bytes:,} bytes as JSON Lines, the limit of an upload: split "
        "the file, or raise TUNESMITH_MAX_UPLOAD_BYTES.",
    )
