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
        remove_duplicates: Whether to leave out each row that equals an earlier one.
    """

    fields: Mapping[str, str] | None = None
    set_fields: Mapping[int, Mapping[str, Any]] | None = None
    remove_rows: Sequence[int] = ()
    remove_duplicates: bool = False


@dataclass(frozen=True)
class Repair:
    """The file that was written; `removed` has the numbers of the rows that it lacks."""

    path: Path
    rows: int
    removed: list[int]


def repair_file(
    path: Path, to: Path, changes: Changes, delimiter: str | None = None, encoding: str | None = None
) -> Repair:
    """Write the changed rows of a file to a new one, as JSON Lines in UTF-8.

    Rows have the numbers of the file's report, from 1. Every row must be readable, or be removed or set.

    Raises:
        FileUncheckable: The file cannot be read.
        RepairRefused: A change names a row or a field that does not exist, a row is unreadable and not
            changed, or `to` exists.
    """
    require_readable(path)
    if to.exists():
        raise RepairRefused(f"The file {to} exists.", "Name a new file: a repair overwrites nothing.")
    rows, unreadable = _read_rows(path, delimiter, encoding)
    _check_rows(changes, len(rows), unreadable)
    kept: list[str] = []
    removed: list[int] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if number in changes.remove_rows:
            removed.append(number)
            continue
        line = json.dumps(_change(number, row, number in unreadable, changes), ensure_ascii=False)
        if changes.remove_duplicates and line in seen:
            removed.append(number)
            continue
        seen.add(line)
        kept.append(line)
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("x", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in kept)
    return Repair(to, len(kept), removed)


def _read_rows(
    path: Path, delimiter: str | None, encoding: str | None
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return the rows, and why some of them are unreadable."""
    from trainers.data.conversion.to_json_lines import convert_to_json_lines
    from trainers.data.files.jsonl import iter_lines

    unreadable: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tunesmith-repair-") as folder:
        target = Path(folder) / "rows.jsonl"
        options = read_options(delimiter, encoding)
        conversion = convert_to_json_lines(path, path.name, target, options, MAX_CONVERTED_BYTES)
        if conversion is not None:
            if conversion.file_fault is not None:
                raise RepairRefused(conversion.file_fault.message)
            unreadable = {number: fault.message for number, fault in conversion.row_faults.items()}
        with (path if conversion is None else target).open("rb") as file:
            for number, line in iter_lines(file):
                row = _parse(line)
                if row is None:
                    unreadable.setdefault(number, "It is not an object of JSON.")
                # A blank line has a number, too.
                rows.extend({} for _ in range(number - len(rows) - 1))
                rows.append(row or {})
    return rows, unreadable


def _parse(line: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8-sig")) if isinstance(line, bytes) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _check_rows(changes: Changes, count: int, unreadable: Mapping[int, str]) -> None:
    changed = {*changes.remove_rows, *(changes.set_fields or {})}
    missing = sorted(number for number in changed if not 1 <= number <= count)
    if missing:
        raise RepairRefused(f"The file has {count:,} rows, and no row {missing[0]}.")
    left = {number: why for number, why in unreadable.items() if number not in changed}
    if left:
        listed = "; ".join(f"row {number}: {why}" for number, why in list(left.items())[:MAX_NAMED])
        raise RepairRefused(
            f"{len(left):,} rows cannot be read: {listed}",
            "Name each of them in `remove_rows`, or give all its fields in `set_fields`.",
        )


def _change(number: int, row: dict[str, Any], is_unreadable: bool, changes: Changes) -> dict[str, Any]:
    given = (changes.set_fields or {}).get(number, {})
    if changes.fields is None:
        return {**row, **given}
    if is_unreadable:
        missing = [name for name in changes.fields if name not in given]
        if missing:
            raise RepairRefused(
                f"Row {number} cannot be read, and `set_fields` does not give its field {missing[0]!r}.",
                "Give all its fields, or name the row in `remove_rows`.",
            )
        return dict(given)
    made = {name: _fill(number, text, row) for name, text in changes.fields.items() if name not in given}
    return {name: given[name] if name in given else made[name] for name in {**changes.fields, **given}}


def _fill(number: int, text: str, row: Mapping[str, Any]) -> str:
    def read(match: re.Match[str]) -> str:
        name = match[1]
        if name not in row:
            raise RepairRefused(
                f"Row {number} has no field {name!r}; its fields are {', '.join(map(repr, row))}.",
                "Correct the name in `fields`, or set or remove the row.",
            )
        value = row[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return PLACEHOLDER.sub(read, text)
