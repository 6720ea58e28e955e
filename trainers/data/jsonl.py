"""JSON Lines, read in constant memory, with a fault for every line that is not a JSON object."""

import json
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from trainers.data.faults import Fault, FaultCode, shown, type_name
from trainers.data.formats import Row
from trainers.data.sniff import UTF8_MARK, file_fault

MAX_LINE_BYTES: Final = 16 * 2**20
# A nested list takes 2 bytes in the file and 88 in memory, an object of one key 7 and 230.
# A million of them stay below 250 MB, whatever a line of 16 MiB holds besides.
MAX_MARKS: Final = 1_000_000
# Pydantic and the JSON encoder give up somewhere above 200 levels; no shape of training data needs 64.
MAX_DEPTH: Final = 64
SKIP_BYTES: Final = 2**20
READ_BUFFER_BYTES: Final = 2**18


def iter_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yields (line number, row) of a file that has been validated; ValueError names the first bad line."""
    with path.open("rb", buffering=READ_BUFFER_BYTES) as file:
        if fault := file_fault(file):
            raise ValueError(f"{path.name}: {fault.message}")
        parser = RowParser()
        for number, line in iter_lines(file):
            row = line if isinstance(line, Fault) else parser.parse(line)
            if isinstance(row, Fault):
                raise ValueError(f"{path.name}, line {number}: {row.message}")
            if row is not None:
                yield number, row
            # A row of 16 MiB can take 250 MB: it must be gone before the next one is parsed.
            del row


def read_rows(path: Path, *, offset: int, limit: int) -> list[tuple[int, Row]]:
    """Up to `limit` readable rows after the first `offset` of them, each with its line number.

    Lines that hold no JSON object are passed over; a file that is not JSONL has no rows. Rows which together
    exceed `MAX_LINE_BYTES` are left to the next call, whose offset is this one plus the rows it returned.
    """
    rows: list[tuple[int, Row]] = []
    with path.open("rb", buffering=READ_BUFFER_BYTES) as file:
        if limit < 1 or file_fault(file):
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
    """Yields (line number from 1, line with its ending); a longer line is a fault and never held whole.

    A byte order mark at the start of the file is dropped.
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


class RowParser:
    """Turns lines into objects; it remembers a key that the last object held twice."""

    def __init__(self) -> None:
        self.duplicate_key: str | None = None
        self._decoder = json.JSONDecoder(
            parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=self._object
        )
        self._scan = self._decoder.scan_once  # type: ignore[attr-defined]  # typeshed leaves it out.

    def parse(self, line: bytes) -> Row | Fault | None:
        """The object on a line, or the fault that keeps it from being one; None for a blank line."""
        self.duplicate_key = None
        if len(line) < 3 and not line.strip():
            return None
        body = line[:-2] if line.endswith(b"\r\n") else line
        if b"\r" in body:
            return _bare_return()
        marks = body.count(b"{") + body.count(b"[")
        if len(body) > MAX_MARKS and marks + body.count(b":") > MAX_MARKS:
            return _too_complex()
        try:
            value = self._value(body.decode())
        except StopIteration:
            return None
        except (ValueError, RecursionError) as error:
            return _unreadable(error, line)
        return _checked(value, body, marks)

    def _value(self, text: str) -> Any:
        try:
            value, end = self._scan(text, 0)
        except StopIteration:
            if not text.strip():
                raise
            return self._decoder.decode(text)
        # The scanner alone is faster than decode(), which searches twice for white space.
        return value if text[end:] in ("", "\n") else self._decoder.decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            self.duplicate_key = _first_repeated(pairs)
        return row


def _first_repeated(pairs: list[tuple[str, Any]]) -> str | None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def _checked(value: Any, body: bytes, marks: int) -> Row | Fault:
    if not isinstance(value, dict):
        return Fault(
            code=FaultCode.not_an_object,
            message=f"The line holds {type_name(value)}: write one JSON object, `{{…}}`, on each line.",
        )
    if marks > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        return _too_deep()
    # Half a surrogate pair can only come from an escape; raw ones fail to decode.
    if b"\\u" in body and (b"\\ud" in body or b"\\uD" in body) and not _is_encodable(value):
        return Fault(
            code=FaultCode.lone_surrogate,
            message="A string holds half of a surrogate pair, which is no character: "
            "write the whole pair, or remove the `\\ud…` escape.",
        )
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _skip_line(file: BinaryIO) -> None:
    while piece := file.readline(SKIP_BYTES):
        if piece.endswith(b"\n"):
            return


class NotFinite(ValueError):
    """A number which JSON does not know."""


def _refuse_constant(name: str) -> NoReturn:
    raise NotFinite(name)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NotFinite(digits)
    return number


def _unreadable(error: ValueError | RecursionError, line: bytes) -> Fault:
    is_cut_off = not line.endswith(b"\n")
    match error:
        case RecursionError():
            return _too_deep()
        case NotFinite():
            return Fault(
                code=FaultCode.not_finite_number,
                message=f"JSON has no number {shown(str(error))}: write a finite number, null or a string.",
            )
        case UnicodeDecodeError() if not (is_cut_off and error.reason == "unexpected end of data"):
            return Fault(
                code=FaultCode.invalid_utf8,
                message=f"Byte {error.start + 1} of the line is not UTF-8: save the file in UTF-8.",
            )
        case json.JSONDecodeError() if not is_cut_off or b"\0" in line or line.startswith(UTF8_MARK):
            return _invalid_json(error, line)
        case json.JSONDecodeError() | UnicodeDecodeError():
            return Fault(
                code=FaultCode.truncated_line,
                message="The last line ends within its object, so the file was cut off: upload it again.",
            )
        case _:
            return Fault(
                code=FaultCode.number_too_long,
                message="A number has thousands of digits: write it as a string, or shorten it.",
            )


def _invalid_json(error: json.JSONDecodeError, line: bytes) -> Fault:
    if b"\0" in line:
        return _nul_byte(line)
    if line.startswith(UTF8_MARK):
        return Fault(
            code=FaultCode.byte_order_mark,
            message="The line begins with a byte order mark, as joined files leave it: remove it.",
        )
    return Fault(
        code=FaultCode.invalid_json,
        message=f"The line is not JSON: {error.msg} at column {error.colno}. Write one object on each line.",
    )


def _nul_byte(line: bytes) -> Fault:
    return Fault(
        code=FaultCode.nul_byte,
        message=f"Byte {line.index(0) + 1} of the line is zero, as broken copies leave it: remove it.",
    )


def _bare_return() -> Fault:
    return Fault(
        code=FaultCode.bare_carriage_return,
        message="A carriage return stands alone, as in files with the line endings of old Macs: "
        "end lines with a line feed, for example with `tr '\\r' '\\n'`.",
    )


def _long_line(head: bytes, max_line_bytes: int) -> Fault:
    if b"\r" in head:
        return _bare_return()
    if b"\0" in head:
        return _nul_byte(head)
    return Fault(
        code=FaultCode.line_too_long,
        message=f"The line is longer than {max_line_bytes:,} bytes: shorten the row, or split it.",
    )


def _too_complex() -> Fault:
    return Fault(
        code=FaultCode.too_complex,
        message=f"The row holds more than {MAX_MARKS:,} brackets and colons: split it into several rows.",
    )


def _too_deep() -> Fault:
    return Fault(
        code=FaultCode.too_deep,
        message=f"The row is nested more than {MAX_DEPTH} levels deep: flatten it, or write the inner part "
        "as a string.",
    )
