"""The repair of a file on this machine: its rows, with new fields and without those that are useless."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.client.api.errors import ClientError
from app.client.data_check import MAX_CONVERTED_BYTES, read_options, require_readable

PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
MAX_NAMED = 20


class RepairRefused(ClientError):
    """The changes do not fit the file."""


@dataclass(frozen=True)
class Changes:
    """What to change.

    Attributes:
        fields: For each field of the new rows, its text with `{name}` for a field of the old row, such as
            `{"prompt": "Translate: {korean}", "completion": "{english}"}`. None keeps all fields.
        set_fields: New values by the number of the row and the name of the (new) field.
        remove_rows: Numbers of rows to leave out.
        remove_unusable: Whether to leave out each row that cannot be read, or that lacks a text of `fields`.
        remove_duplicates: Whether to leave out each row that equals an earlier one.
    """

    fields: Mapping[str, str] | None = None
    set_fields: Mapping[int, Mapping[str, Any]] | None = None
    remove_rows: Sequence[int] = ()
    remove_unusable: bool = False
    remove_duplicates: bool = False


@dataclass(frozen=True)
class Repair:
    """The file that was written; `removed` has the reason for each row that it lacks, by its number."""

    path: Path
    rows: int
    removed: dict[int, str]


def repair_file(
    path: Path, to: Path, changes: Changes, delimiter: str | None = None, encoding: str | None = None
) -> Repair:
    """Write the changed rows of a file to a new one, as JSON Lines in UTF-8.

    Rows have the numbers of the file's report, from 1. A row that cannot be used must be removed or set.

    Raises:
        FileUncheckable: The file cannot be read.
        RepairRefused: A change names a row or a field that does not exist, a row cannot be used and is not
            changed, or `to` exists.
    """
    require_readable(path)
    if to.exists():
        raise RepairRefused(f"The file {to} exists.", "Name a new file: a repair overwrites nothing.")
    rows, unusable, blank = _read_rows(path, delimiter, encoding)
    _check_names(changes, rows)
    unusable |= {
        number: why
        for number, row in rows.items()
        if number not in unusable | blank and (why := _lacks(row, changes))
    }
    removed = _choose_removed(changes, len(rows), unusable)
    removed |= {number: why for number, why in blank.items() if number not in (changes.set_fields or {})}
    lines: dict[bytes, int] = {}
    kept: list[bytes] = []
    for number, row in rows.items():
        if number in removed:
            continue
        line = _write(number, _change(number, row, changes))
        if changes.remove_duplicates and line in lines:
            removed[number] = f"It equals row {lines[line]}."
            continue
        lines.setdefault(line, number)
        kept.append(line)
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("xb") as file:
        file.writelines(kept)
    return Repair(to, len(kept), dict(sorted(removed.items())))


def _read_rows(
    path: Path, delimiter: str | None, encoding: str | None
) -> tuple[dict[int, dict[str, Any]], dict[int, str], dict[int, str]]:
    """Return the rows by number, why some cannot be read, and the blank lines, which count as rows."""
    from trainers.data.conversion.to_json_lines import convert_to_json_lines
    from trainers.data.faults import Fault
    from trainers.data.files.json_line import RowParser
    from trainers.data.files.jsonl import iter_lines

    rows: dict[int, dict[str, Any]] = {}
    unreadable: dict[int, str] = {}
    blank: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="tunesmith-repair-") as folder:
        target = Path(folder) / "rows.jsonl"
        options = read_options(delimiter, encoding)
        conversion = convert_to_json_lines(path, path.name, target, options, MAX_CONVERTED_BYTES)
        if conversion is not None:
            if conversion.file_fault is not None:
                raise RepairRefused(conversion.file_fault.message)
            unreadable = {number: fault.message for number, fault in conversion.row_faults.items()}
        with (path if conversion is None else target).open("rb") as file:
            parser = RowParser()
            for number, line in iter_lines(file):
                row = parser.parse(line) if isinstance(line, bytes) else line
                if isinstance(row, Fault):
                    unreadable[number] = row.message
                elif parser.duplicate_key is not None:
                    unreadable[number] = f"It has the key {parser.duplicate_key!r} twice."
                elif row is None:
                    blank[number] = "The line is blank."
                rows[number] = row if isinstance(row, dict) else {}
    return rows, unreadable, blank


def _check_names(changes: Changes, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise RepairRefused for a row, or a field of old rows, that does not exist."""
    missing = sorted({*changes.remove_rows, *(changes.set_fields or {})} - rows.keys())
    if missing:
        raise RepairRefused(f"The file has {len(rows):,} rows, and no row {missing[0]}.")
    known = dict.fromkeys(name for row in rows.values() for name in row)
    for field, text in (changes.fields or {}).items():
        for name in PLACEHOLDER.findall(text):
            if name not in known:
                raise RepairRefused(
                    f"The text of `fields` for {field!r} names {name!r}, which no row has.",
                    f"The fields of the rows are {', '.join(map(repr, known))}.",
                )


def _lacks(row: Mapping[str, Any], changes: Changes) -> str | None:
    """Return which text of `fields` a row lacks; in `Translate: `, a check would not notice it."""
    names = [name for text in (changes.fields or {}).values() for name in PLACEHOLDER.findall(text)]
    lacking = [name for name in names if row.get(name) is None or not str(row[name]).strip()]
    return f"Its field {lacking[0]!r} is empty." if lacking else None


def _choose_removed(changes: Changes, count: int, unusable: Mapping[int, str]) -> dict[int, str]:
    """Return the rows to leave out; raise RepairRefused if a row that cannot be used would stay."""
    given = changes.set_fields or {}
    needed = set(changes.fields or ())
    left = {number: why for number, why in unusable.items() if not given.get(number, {}).keys() >= needed}
    left |= {number: why for number, why in unusable.items() if number not in given}
    removed = {number: unusable.get(number, "remove_rows names it.") for number in changes.remove_rows}
    if changes.remove_unusable:
        return removed | left
    if remaining := {number: why for number, why in left.items() if number not in removed}:
        listed = "; ".join(f"row {number}: {why}" for number, why in list(remaining.items())[:MAX_NAMED])
        raise RepairRefused(
            f"{len(remaining):,} of {count:,} rows cannot be used: {listed}",
            "Give all fields of such a row in `set_fields`, name it in `remove_rows`, or remove them all by "
            "`remove_unusable`.",
        )
    return removed


def _change(number: int, row: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    given = (changes.set_fields or {}).get(number, {})
    if changes.fields is None:
        return {**row, **given}
    made = {name: _fill(text, row) for name, text in changes.fields.items() if name not in given}
    return {name: {**made, **given}[name] for name in {**changes.fields, **given}}


def _write(number: int, row: Mapping[str, Any]) -> bytes:
    from trainers.data.files.jsonl import row_line

    try:
        return row_line(dict(row), number)
    except ValueError as error:
        raise RepairRefused(str(error)) from error


def _fill(text: str, row: Mapping[str, Any]) -> str:
    def read(match: re.Match[str]) -> str:
        value = row[match[1]]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return PLACEHOLDER.sub(read, text)
