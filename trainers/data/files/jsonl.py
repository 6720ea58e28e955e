"""Reading and writing of JSON Lines in constant memory, with a fault for each line that is not an object."""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final

from trainers.data.faults import Fault, FaultCode
from trainers.data.files.file_checks import UTF8_MARK, find_file_fault
from trainers.data.files.json_line import RowParser, bare_return_fault, nul_byte_fault
from trainers.data.formats import Row

MAX_LINE_BYTES: Final = 16 * 2**20
SKIP_BYTES: Final = 2**20
READ_BUFFER_BYTES: Final = 2**18


def iter_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) of a valid file; raises ValueError naming the first invalid line."""
    with path.open("rb", buffering=READ_BUFFER_BYTES) as file:
        if fault := find_file_fault(file):
            raise ValueError(f"{path.name}: {fault.message}")
        parser = RowParser()
        for number, line in iter_lines(file):
            row = line if isinstance(line, Fault) else parser.parse(line)
            if isinstance(row, Fault):
                raise ValueError(f"{path.name}, line {number}: {row.message}")
            if row is not None:
                yield number, row
            # A row of 16 MiB can use 250 MB of memory: free it before the next one is parsed.
            del row


def read_rows(path: Path, *, offset: int, limit: int) -> list[tuple[int, Row]]:
    """Return up to `limit` readable rows after the first `offset` of them, each with its line number.

    Lines without a JSON object are skipped; a file that is not JSONL has no rows. The rows together have at
    most `MAX_LINE_BYTES`, unless the first alone exceeds it; the offset of the next call is this one plus the
    number of rows returned.
    """
    rows: list[tuple[int, Row]] = []
    with path.open("rb", buffering=READ_BUFFER_BYTES) as file:
        if limit < 1 or find_file_fault(file):
            return rows
        parser, seen, size_bytes = RowParser(), 0, 0
        for number, line in iter_lines(file):
            row = line if isinstance(line, Fault) else parser.parse(line)
            if isinstance(row, dict):
                seen += 1
                if seen > offset:
                    size_bytes += len(line) if isinstance(line, bytes) else 0
                    if rows and size_bytes > MAX_LINE_BYTES:
                        break
                    rows.append((number, row))
                if len(rows) == limit:
                    break
            del row
    return rows


def iter_lines(
    file: BinaryIO, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes | Fault]]:
    """Yield (line number from 1, line with its ending); a line that is too long is a fault, never read whole.

    A byte order mark at the start of the file is skipped.
    """
    readline, limit = file.readline, max_line_bytes + 1
    if file.read(len(UTF8_MARK)) != UTF8_MARK:
        file.seek(0)
    for number in count(1):
        line = readline(limit)
        if not line:
            return
        if len(line) == limit and not line.endswith(b"\n"):
            fault = _long_line(line, max_line_bytes)
            del line
            _skip_line(file)
            yield number, fault
        else:
            yield number, line


def save_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows to a file, one per line, and return their number; the file appears when it is complete.

    Raises ValueError for a row that `iter_rows` would reject: a number that is not finite, half a surrogate
    pair, a value of a type that JSON lacks, or a line of more than `MAX_LINE_BYTES`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written = 0
    try:
        with temporary.open("wb") as file:
            for written, row in enumerate(rows, start=1):
                file.write(row_line(row, written))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def row_line(row: Row, number: int) -> bytes:
    """Return the line of a row as bytes; raises ValueError like `save_rows`, naming the row's number."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"Row {number} cannot be written as JSON: {error}. Correct or remove it.") from error
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(
            f"Row {number} has {len(line):,} bytes; the maximum is {MAX_LINE_BYTES:,}. Split it."
        )
    return line


def _skip_line(file: BinaryIO) -> None:
    while piece := file.readline(SKIP_BYTES):
        if piece.endswith(b"\n"):
            return


def _long_line(head: bytes, max_line_bytes: int) -> Fault:
    if b"\r" in head:
        return bare_return_fault()
    if b"\0" in head:
        return nul_byte_fault(head)
    return Fault(
        code=FaultCode.line_too_long,
        message=f"The line is longer than {max_line_bytes:,} bytes: shorten the row, or split it.",
    )
