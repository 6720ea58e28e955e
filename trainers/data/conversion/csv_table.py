"""A table as comma-separated values: a header with the fields' names, then one row of texts per record."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO, Final

from trainers.data.conversion.conversion import LineWriter, SourceUnreadable
from trainers.data.faults import Fault, FaultCode, quote_value
from trainers.data.files.file_checks import HEAD_BYTES, UTF8_MARK
from trainers.data.files.jsonl import MAX_LINE_BYTES
from trainers.data.formats import FIELD_SETS

MAX_COLUMNS: Final = 1000
DELIMITERS: Final = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
# Fields of a row that are lists, which a cell contains as JSON.
JSON_COLUMNS: Final = frozenset({"messages", "conversations", "tools", "history", "chosen", "rejected"})
COMPLETION_COLUMNS: Final = frozenset({"chosen", "rejected"})
STATE_ENCODING: Final = (
    "state its encoding in the field `encoding` (`--encoding` of the command line), such as `cp949` for a "
    "Korean file of Excel"
)
BOOLEAN_COLUMNS: Final = frozenset({"label"})
# An empty cell of another column means that the row does not have the field.
REQUIRED_COLUMNS: Final = frozenset(
    name for sets in FIELD_SETS.values() for fields in sets for name in fields
)


class TextEncoding(StrEnum):
    """Encoding of a CSV file."""

    utf_8 = "utf-8"
    utf_16 = "utf-16"
    cp949 = "cp949"
    euc_kr = "euc-kr"
    shift_jis = "shift_jis"
    gb18030 = "gb18030"
    windows_1252 = "windows-1252"


class Delimiter(StrEnum):
    """Character between the cells of a CSV file."""

    comma = "comma"
    semicolon = "semicolon"
    tab = "tab"
    pipe = "pipe"


@dataclass(frozen=True)
class CsvOptions:
    """How to read a CSV file.

    None is detected: the delimiter from the header, and UTF-8 or UTF-16 from the byte order mark.
    """

    delimiter: Delimiter | None = None
    encoding: TextEncoding | None = None


def convert_csv(file: BinaryIO, writer: LineWriter, options: CsvOptions) -> None:
    """Write each record as a row; raises SourceUnreadable where the table cannot be read any further."""
    table = _Table(file, options)
    try:
        _convert_records(table, writer)
    finally:
        table.detach()


def _convert_records(table: "_Table", writer: LineWriter) -> None:
    names = table.read_header()
    for line, cells in table.read_records():
        place = table.place
        writer.begin_row(line)
        if isinstance(cells, Fault):
            writer.add_fault(cells.code, cells.message)
        elif len(cells) == len(names):
            writer.write_row(_make_row(names, cells), place)
        else:
            writer.add_fault(
                FaultCode.wrong_columns,
                f"{place} has {len(cells)} {'cell' if len(cells) == 1 else 'cells'}, but the header has "
                f"{len(names)}: quote a cell that contains the delimiter, or correct the row.",
            )


class _Table:
    """The records of a file. No record is read beyond the length of the longest row."""

    def __init__(self, file: BinaryIO, options: CsvOptions) -> None:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        self._encoding = options.encoding or _detect_encoding(head)
        codec = "utf-8-sig" if self._encoding is TextEncoding.utf_8 else self._encoding.value
        # Bytes that are not text become surrogates, so that the row that has them can be named.
        self._text = io.TextIOWrapper(file, codec, errors="surrogateescape", newline="")
        self._record_start, self._characters = 1, 0
        delimiter = options.delimiter or _detect_delimiter(head.decode(self._encoding, "replace"))
        csv.field_size_limit(MAX_LINE_BYTES)
        self._reader = csv.reader(self._lines(), delimiter=DELIMITERS[delimiter], strict=True)

    def detach(self) -> None:
        """Leave the file open, which belongs to the caller."""
        self._text.detach()

    @property
    def place(self) -> str:
        """The lines of the record that was read last, for a message."""
        first, last = self._record_start, self._reader.line_num
        return f"The record in lines {first} to {last}" if last > first else f"The record in line {first}"

    def read_header(self) -> list[str]:
        """Return the names of the columns; raises SourceUnreadable if they are not a header."""
        names = next((cells for _, cells in self.read_records()), [])
        if isinstance(names, Fault):
            raise SourceUnreadable(names)
        names = [name.strip() for name in names]
        if not names:
            problem = "is empty"
        elif len(names) > MAX_COLUMNS:
            problem = f"has more than {MAX_COLUMNS:,} columns"
        elif not all(names):
            problem = f"has no name for column {names.index('') + 1}"
        elif len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            problem = f"has the name {quote_value(twice)} twice"
        elif any("\udc80" <= character <= "\udcff" for name in names for character in name):
            problem = f"is not text in the encoding {self._encoding}: {STATE_ENCODING}"
        else:
            return names
        raise SourceUnreadable(
            Fault(
                code=FaultCode.invalid_header,
                message=f"The first line of the CSV file must be a header with the names of the fields, such "
                f"as `prompt,completion`; it {problem}.",
            )
        )

    def read_records(self) -> Iterator[tuple[int, list[str] | Fault]]:
        """Yield each record that is not blank, with the line in which it begins."""
        while True:
            self._record_start, self._characters = self._reader.line_num + 1, 0
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                message = f"{self.place} is not valid CSV: {error}. {self._find_quote_advice()}"
                yield self._record_start, Fault(code=FaultCode.invalid_csv, message=message)
                continue
            except UnicodeError:
                raise SourceUnreadable(_encoding_fault(self._encoding)) from None
            if cells:
                yield self._record_start, cells

    def _find_quote_advice(self) -> str:
        if self._reader.line_num == self._record_start:
            return "Double the quotes within a quoted cell."
        # What is read as one cell are rows that would be lost with this one.
        return (
            f"A quote that opens in line {self._record_start} is probably not closed, which hides the rows "
            "after it: close or remove it. Double the quotes within a quoted cell."
        )

    def _lines(self) -> Iterator[str]:
        while line := self._read_line():
            self._characters += len(line)
            if self._characters > MAX_LINE_BYTES:
                raise SourceUnreadable(
                    Fault(
                        code=FaultCode.line_too_long,
                        message=f"The record that begins in line {self._record_start} is longer than "
                        f"{MAX_LINE_BYTES:,} characters: a quoted cell is probably not closed.",
                    )
                )
            yield line

    def _read_line(self) -> str:
        try:
            return self._text.readline(MAX_LINE_BYTES + 1)
        except UnicodeError:
            raise SourceUnreadable(_encoding_fault(self._encoding)) from None


def _make_row(names: list[str], cells: list[str]) -> dict[str, Any]:
    return {
        name: _read_cell(name, cell)
        for name, cell in zip(names, cells, strict=True)
        if cell or name in REQUIRED_COLUMNS
    }


def _read_cell(name: str, cell: str) -> Any:
    """Return the value of a cell: JSON where the field is a list, and the text itself otherwise."""
    if name in BOOLEAN_COLUMNS and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    if name in JSON_COLUMNS and cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            # Validation reports the text where a list is expected.
            return cell
        # A completion such as "[1, 2]" is a text, unless its elements are messages.
        is_text = name in COMPLETION_COLUMNS and not all(isinstance(part, dict) for part in value or [cell])
        return cell if is_text else value
    return cell


def _detect_encoding(head: bytes) -> TextEncoding:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return TextEncoding.utf_16
    whole = head if len(head) < HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    lines = [line for line in whole.removeprefix(UTF8_MARK).split(b"\n") if not line.isascii()]
    if lines and not any(_is_utf8(line) for line in lines):
        raise SourceUnreadable(_encoding_fault(TextEncoding.utf_8))
    return TextEncoding.utf_8


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _encoding_fault(encoding: TextEncoding) -> Fault:
    return Fault(
        code=FaultCode.wrong_encoding,
        message=f"The CSV file is not encoded as {encoding}: {STATE_ENCODING}, or save it as UTF-8.",
    )


def _detect_delimiter(head: str) -> Delimiter:
    """Return the delimiter that divides the header into most columns; the first of equal ones."""
    header = head.lstrip("\r\n\ufeff").partition("\n")[0]
    return max(Delimiter, key=lambda delimiter: header.count(DELIMITERS[delimiter]))
