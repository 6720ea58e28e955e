"""The faults and warnings of a dataset as a CSV file, for people who correct rows in a spreadsheet."""

import csv
import io

from trainers.data.validate import ValidationReport

COLUMNS = ("line", "file_line", "field", "code", "message")
# A spreadsheet computes a cell that begins with one of these, and cells quote what strangers have uploaded.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def render_fault_table(report: ValidationReport) -> str:
    """Return the listed faults and warnings, in the order of the lines; those of the whole file are first."""
    found = sorted([*report.faults, *report.warnings], key=lambda fault: fault.line or 0)
    # With a byte order mark, spreadsheets read UTF-8.
    text = io.StringIO("\ufeff")
    text.seek(0, io.SEEK_END)
    table = csv.writer(text)
    table.writerow(COLUMNS)
    table.writerows(
        (
            fault.line or "",
            fault.file_line or "",
            _disarm(fault.field or ""),
            fault.code,
            _disarm(fault.message),
        )
        for fault in found
    )
    return text.getvalue()


def _disarm(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
