"""The repair of a file on this machine: its rows, with new fields and without those that are useless."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

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

    Rows have the numbers of the file's report, from 1. A row that cannot be used must be removed or set. The
    rows are read twice from the disk, and never held in memory together.

    Raises:
        FileUncheckable: The file cannot be read.
        RepairRefused: A change names a row or a field that does not exist, a row cannot be used and is not
            changed, or `to` exists.
    """
    require_readable(path)
    if to.exists():
        raise RepairRefused(f"The file {to} exists.", "Name a new file: a repair overwrites nothing.")
    with _open_rows(path, delimiter, encoding) as source:
        survey = _survey(source, changes)
        removed = _choose_removed(changes, survey.n_rows, survey.unusable)
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            with to.open("xb") as file:
                n_kept = _write_rows(source, changes, removed, file)
        except RepairRefused:
            to.unlink()
            raise
    return Repair(to, n_kept, dict(sorted(removed.items())))


@dataclass(frozen=True)
class _Row:
    """A row by its number: its fields, or why there are none."""

    number: int
    values: Mapping[str, Any]
    problem: str | None = None
    is_blank: bool = False


@dataclass
class _Source:
    """The rows of a file, which are read from the disk as often as they are needed."""

    lines: Path
    unconverted: Mapping[int, str]

    def __iter__(self) -> Iterator[_Row]:
        from trainers.data.faults import Fault
        from trainers.data.files.json_line import RowParser
        from trainers.data.files.jsonl import iter_lines

        parser = RowParser()
        with self.lines.open("rb") as file:
            for number, line in iter_lines(file):
                row = parser.parse(line) if isinstance(line, bytes) else line
                if number in self.unconverted:
                    yield _Row(number, {}, self.unconverted[number])
                elif isinstance(row, Fault):
                    yield _Row(number, {}, row.message)
                elif row is None:
                    yield _Row(number, {}, is_blank=True)
                elif parser.duplicate_key is not None:
                    yield _Row(number, row, f"It has the key {parser.duplicate_key!r} twice.")
                else:
                    yield _Row(number, row)


@dataclass
class _Survey:
    """What a first reading of the rows has found."""

    n_rows: int = 0
    names: dict[str, None] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)


@contextmanager
def _open_rows(path: Path, delimiter: str | None, encoding: str | None) -> Iterator[_Source]:
    """Yield the rows of a file, which is converted for the block if it is not JSON Lines."""
    from trainers.data.conversion.to_json_lines import convert_to_json_lines

    with tempfile.TemporaryDirectory(prefix="tunesmith-repair-") as folder:
        target = Path(folder) / "rows.jsonl"
        options = read_options(delimiter, encoding)
        conversion = convert_to_json_lines(path, path.name, target, options, MAX_CONVERTED_BYTES)
        if conversion is None:
            yield _Source(path, {})
            return
        if conversion.file_fault is not None:
            raise RepairRefused(conversion.file_fault.message)
        yield _Source(target, {number: fault.message for number, fault in conversion.row_faults.items()})


def _survey(source: _Source, changes: Changes) -> _Survey:
    """Read the rows once; raise RepairRefused for a change of a row or a field that does not exist."""
    found = _Survey()
    for row in source:
        found.n_rows += 1
        found.names |= dict.fromkeys(row.values)
        problem = row.problem or (None if row.is_blank else _lacks(row.values, changes))
        if problem is not None:
            found.unusable[row.number] = problem
    _check_names(changes, found)
    return found


def _write_rows(source: _Source, changes: Changes, removed: dict[int, str], file: BinaryIO) -> int:
    """Write the changed rows that are kept; add the other ones to `removed`, and return how many are kept."""
    first: dict[bytes, int] = {}
    n_kept = 0
    for row in source:
        if row.is_blank and row.number not in (changes.set_fields or {}):
            removed.setdefault(row.number, "The line is blank.")
        if row.number in removed:
            continue
        line = _write(row.number, _change(row.number, row.values, changes))
        if changes.remove_duplicates:
            digest = hashlib.blake2b(line, digest_size=16).digest()
            if (same := first.setdefault(digest, row.number)) != row.number:
                removed[row.number] = f"It equals row {same}."
                continue
        file.write(line)
        n_kept += 1
    return n_kept


def _check_names(changes: Changes, found: _Survey) -> None:
    numbers = {*changes.remove_rows, *(changes.set_fields or {})}
    missing = sorted(number for number in numbers if not 1 <= number <= found.n_rows)
    if missing:
        raise RepairRefused(f"The file has {found.n_rows:,} rows, and no row {missing[0]}.")
    for name_of_new, text in (changes.fields or {}).items():
        for name in PLACEHOLDER.findall(text):
            if name not in found.names:
                raise RepairRefused(
                    f"The text of `fields` for {name_of_new!r} names {name!r}, which no row has.",
                    f"The fields of the rows are {', '.join(map(repr, found.names))}.",
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
