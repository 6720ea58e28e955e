"""The conversion of an uploaded file to JSON Lines, by its first bytes and its name."""

from pathlib import Path
from typing import BinaryIO

from trainers.data.conversion.conversion import Conversion, LineWriter, SourceFormat, SourceUnreadable
from trainers.data.conversion.csv_table import CsvOptions, Delimiter, convert_csv
from trainers.data.conversion.json_array import convert_json_array
from trainers.data.conversion.parquet import convert_parquet
from trainers.data.faults import FaultCode
from trainers.data.files.file_checks import HEAD_BYTES, UTF8_MARK, find_file_fault

PARQUET_MAGIC = b"PAR1"
CSV_SUFFIXES = (".csv", ".tsv")


def convert_to_json_lines(
    source: Path, name: str, target: Path, options: CsvOptions, max_bytes: int
) -> Conversion | None:
    """Write the rows of a CSV, Parquet or JSON array file to `target`; None for a file of another kind.

    `name` is the name that the file was uploaded with. The rows may have `max_bytes` as JSON Lines.
    """
    kind = detect_source(source, name, options)
    if kind is None:
        return None
    if kind is SourceFormat.parquet:
        return convert_parquet(source, target, max_bytes)
    if kind is SourceFormat.csv and name.lower().endswith(".tsv") and options.delimiter is None:
        options = CsvOptions(Delimiter.tab, options.encoding)
    with source.open("rb") as file, target.open("wb") as out:
        writer = LineWriter(out, max_bytes)
        try:
            if kind is SourceFormat.csv:
                convert_csv(file, writer, options)
            else:
                convert_json_array(file, writer)
        except SourceUnreadable as failed:
            return Conversion(kind, writer.row_faults, failed.fault, writer.lines)
    return Conversion(kind, writer.row_faults, lines=writer.lines)


def detect_source(source: Path, name: str, options: CsvOptions) -> SourceFormat | None:
    """Return the format of a file that must be converted, or None."""
    with source.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if head.startswith(PARQUET_MAGIC):
            return SourceFormat.parquet
        if _is_array(file):
            return SourceFormat.json_array
    is_csv = name.lower().endswith(CSV_SUFFIXES) or options != CsvOptions()
    # JSON Lines that were given the name of a table stay what they are.
    return SourceFormat.csv if is_csv and not _is_json(head) else None


def _is_array(file: BinaryIO) -> bool:
    fault = find_file_fault(file)
    return fault is not None and fault.code is FaultCode.json_array


def _is_json(head: bytes) -> bool:
    return head.removeprefix(UTF8_MARK).lstrip().startswith(b"{")
