"""Validation of a file: its faults with their lines, and statistics of its valid rows."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import BaseModel, Field

from trainers.data.checks import unknown_format_fault, validate_row
from trainers.data.conversion.conversion import Conversion, SourceFormat
from trainers.data.faults import Fault, FaultCode, FindingShare, quote_value
from trainers.data.files.file_checks import empty_file_fault, find_file_fault
from trainers.data.files.json_line import RowParser
from trainers.data.files.jsonl import READ_BUFFER_BYTES, iter_lines
from trainers.data.formats import Row, RowFormat, detect_format
from trainers.data.statistics import Statistics, StatisticsCollector
from trainers.data.texts.unread_fields import unread_texts

FORMAT_ROWS: Final = 100
BLANK_LINE: Final = Fault(code=FaultCode.blank_line, message="The line is blank and is ignored: remove it.")


class ValidationReport(BaseModel):
    """Result of validation. A file can be trained on if it has valid rows and no fault."""

    converted_from: SourceFormat | None = Field(
        None,
        description="Format of the uploaded file, if it was not JSON Lines. Row n is line n of the dataset.",
    )
    format: RowFormat | None = Field(
        None, description="The most frequent format of the first 100 readable rows."
    )
    row_count: int = Field(0, description="Number of lines that are not blank.")
    valid_row_count: int = Field(0, description="Number of rows without a fault.")
    fault_count: int = Field(0, description="Number of faults.")
    fault_counts: dict[FaultCode, int] = Field({}, description="Number of faults by code.")
    faults: list[Fault] = Field(
        [], description="The first faults of each code, up to 100 in all, in the order of their lines."
    )
    warning_count: int = Field(0, description="Number of warnings.")
    warning_counts: dict[FaultCode, int] = Field({}, description="Number of warnings by code.")
    warnings: list[Fault] = Field(
        [], description="The first warnings of each code, up to 100 in all, in the order of their lines."
    )
    statistics: Statistics = Field(Statistics(), description="Statistics of the valid rows.")


class FaultCounter:
    """Counts of faults by code, and the first ones of each code."""

    def __init__(self, limit: int) -> None:
        self.counts: Counter[FaultCode] = Counter()
        self._first: FindingShare[Fault] = FindingShare(limit)

    def add(self, fault: Fault, line: int | None) -> None:
        """Count a fault of a line."""
        self.counts[fault.code] += 1
        if self._first.has_room(fault.code):
            self._first.add(fault.model_copy(update={"line": line}))

    def list_first(self) -> list[Fault]:
        """Return the kept faults in the order of their lines."""
        return sorted(self._first.in_order(), key=lambda fault: fault.line or 0)


def validate_conversion(path: Path, conversion: Conversion) -> ValidationReport:
    """Check the rows that were converted to `path`; the report also has the faults of the conversion."""
    is_converted = path.exists() and path.stat().st_size > 0
    report = validate_file(path, row_faults=conversion.row_faults) if is_converted else ValidationReport()
    if conversion.file_fault is not None:
        fault, counts = conversion.file_fault, report.fault_counts
        report.faults = [fault, *report.faults]
        report.fault_count += 1
        report.fault_counts = counts | {fault.code: counts.get(fault.code, 0) + 1}
    elif not is_converted:
        report = validate_file(path)
    report.converted_from = conversion.source
    report.faults = [_add_file_line(fault, conversion) for fault in report.faults]
    report.warnings = [_add_file_line(fault, conversion) for fault in report.warnings]
    return report


def _add_file_line(fault: Fault, conversion: Conversion) -> Fault:
    line = None if fault.line is None else conversion.lines.find(fault.line)
    return fault if line is None else fault.model_copy(update={"file_line": line})


def validate_file(
    path: Path, *, max_faults: int = 100, row_faults: Mapping[int, Fault] | None = None
) -> ValidationReport:
    """Check every line of a file against the most frequent format of its first rows, in constant memory.

    The report contains the counts of all faults and warnings, and the first ones of each code, up to
    `max_faults`. A line in `row_faults` has that fault, whatever it contains.
    """
    known = row_faults or {}
    with path.open("rb", buffering=READ_BUFFER_BYTES) as file:
        if fault := find_file_fault(file):
            return ValidationReport(fault_count=1, fault_counts={fault.code: 1}, faults=[fault])
        row_format, is_labelled = _detect_file_format(file)
        file.seek(0)
        check = FileValidator(row_format, max_faults, is_labelled=is_labelled)
        for number, line in iter_lines(file):
            check.add(number, known.get(number, line))
    return check.report()


class FileValidator:
    """Validation of a file, line by line."""

    def __init__(self, row_format: RowFormat | None, max_faults: int, *, is_labelled: bool = False) -> None:
        """With `is_labelled`, a row whose `label` is neither true nor false gets a warning."""
        self._format, self._is_labelled = row_format, is_labelled
        self._rows = self._valid_rows = 0
        self._faults, self._warnings = FaultCounter(max_faults), FaultCounter(max_faults)
        self._survey = StatisticsCollector()
        self._unread = UnreadFieldCounter()
        self._parser = RowParser()

    def add(self, number: int, line: bytes | Fault) -> None:
        """Check the next line."""
        row = self._parser.parse(line) if isinstance(line, bytes) else line
        if row is None:
            self._warnings.add(BLANK_LINE, number)
            return
        self._rows += 1
        if isinstance(row, Fault):
            self._faults.add(row, number)
        elif self._check_row(row, number) and self._format is not None:
            self._valid_rows += 1
            self._survey.add(row, self._format)
            self._unread.add(number, row, self._format)
            self._warn_of_duplicates(number, line)
            if self._is_labelled and not isinstance(row.get("label"), bool):
                self._warnings.add(_missing_label(row), number)

    def report(self) -> ValidationReport:
        """Return the result for the lines so far."""
        if not self._rows:
            self._faults.add(empty_file_fault(), None)
        for line, fault in self._unread.warnings():
            self._warnings.add(fault, line)
        return ValidationReport(
            format=self._format,
            row_count=self._rows,
            valid_row_count=self._valid_rows,
            fault_count=self._faults.counts.total(),
            fault_counts=dict(self._faults.counts),
            faults=self._faults.list_first(),
            warning_count=self._warnings.counts.total(),
            warning_counts=dict(self._warnings.counts),
            warnings=self._warnings.list_first(),
            statistics=self._survey.statistics(),
        )

    def _check_row(self, row: Row, number: int) -> bool:
        """Record the faults and warnings of a row; return whether it has no faults."""
        found = validate_row(row, self._format) if self._format else [unknown_format_fault(row)]
        is_valid = True
        for fault in found:
            is_warning = fault.code.is_warning
            (self._warnings if is_warning else self._faults).add(fault, number)
            is_valid = is_valid and is_warning
        return is_valid

    def _warn_of_duplicates(self, number: int, line: bytes | Fault) -> None:
        assert isinstance(line, bytes)
        if (key := self._parser.duplicate_key) is not None:
            self._warnings.add(_duplicate_key(key), number)
        if first := self._survey.first_line(number, line):
            self._warnings.add(_duplicate_row(first), number)


class UnreadFieldCounter:
    """Counts the rows with a field that no format reads, although its name is one for text of the model."""

    def __init__(self) -> None:
        self._first_lines: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def add(self, number: int, row: Row, row_format: RowFormat) -> None:
        """Check a valid row."""
        named = {path.partition("[")[0] for path, _, _ in unread_texts(row, row_format, named_only=True)}
        for name in named:
            self._first_lines.setdefault(name, number)
            self._counts[name] += 1

    def warnings(self) -> Iterator[tuple[int, Fault]]:
        """Yield one warning for each field, with the first line that has it."""
        for name, line in self._first_lines.items():
            count = self._counts[name]
            rows = "this row" if count == 1 else f"{count} rows"
            yield (
                line,
                Fault(
                    field=name,
                    code=FaultCode.field_not_read,
                    message=f"`{name}` in {rows} is not read: move its text into a message, `system` or "
                    "`history`, or remove the field.",
                ),
            )


def _detect_file_format(file: BinaryIO) -> tuple[RowFormat | None, bool]:
    """Return the most frequent format of the first rows, and whether most of them are labelled."""
    found: Counter[RowFormat | None] = Counter()
    labelled = 0
    parser = RowParser()
    for _, line in iter_lines(file):
        row = parser.parse(line) if isinstance(line, bytes) else None
        if isinstance(row, dict):
            found[detect_format(row)] += 1
            labelled += isinstance(row.get("label"), bool)
        # A row of 16 MiB can use 250 MB of memory: free it before the next one is parsed.
        del row
        if found.total() == FORMAT_ROWS:
            break
    is_labelled = 2 * labelled > found.total()
    del found[None]
    # Of equal counts, most_common() returns the first in the file.
    return (found.most_common(1)[0][0] if found else None), is_labelled


def _missing_label(row: Row) -> Fault:
    found = f"is {quote_value(row['label'])}" if "label" in row else "is missing"
    return Fault(
        field="label",
        code=FaultCode.label_missing,
        message=f"`label` {found}, but most rows have `true` or `false`: add it to train with `kto`.",
    )


def _duplicate_key(key: str) -> Fault:
    return Fault(
        code=FaultCode.duplicate_key,
        message=f"An object contains the key {quote_value(key)} twice; only the last value is used. "
        "Remove one of them.",
    )


def _duplicate_row(first: int) -> Fault:
    return Fault(
        code=FaultCode.duplicate_row,
        message=f"The row is equal to line {first}: remove it, unless it should count twice.",
    )
