"""Files of exported objects: one object a line, or one JSON document with objects, arrays or pages of lists.

A file whose lines are `{"item": …}` has rows, the source of runs, and no objects.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from pydantic import ValidationError

from app.evals.imports.exported import KINDS, ROW, ExportedObject, use_api_names
from app.http.errors import UnprocessableContent
from app.http.text_check import find_unstorable
from trainers.configs.parsing.json_schema import MAX_NESTING, is_nested_deeper

MAX_DOCUMENT_BYTES = 64 << 20
ITEM = "eval.run.output_item"
_decode = msgspec.json.Decoder().decode
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ExportFile:
    """A file on this host, and the name that errors and the report give it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Place:
    """Where a value is: the line of a file, and the path in a document, `data.3`."""

    file: str
    line: int
    path: str = ""

    def error(self, field: str, message: str) -> UnprocessableContent:
        """Return the error of a field here."""
        field = ".".join(part for part in (self.path, field) if part)
        sentence = f"{self.file}, line {self.line}: {f'{field}: ' if field else ''}{message}."
        entry = {"field": field, "message": message, "file": self.file, "line": self.line}
        return UnprocessableContent(sentence, fields=[entry])


@dataclass(frozen=True)
class FoundObject:
    """A valid object, its place, and its text as JSON with sorted names."""

    place: Place
    content: ExportedObject
    text: str


@dataclass(frozen=True)
class FoundRow:
    """A row of a file of rows."""

    place: Place


def read_file(file: ExportFile) -> Iterator[FoundObject | FoundRow]:
    """Yield the objects or the rows of a file.

    Raises UnprocessableContent, naming file, line and field, for what is neither, or malformed.
    """
    is_row_file: bool | None = None
    for place, value in _read_values(file):
        found = _parse(place, value)
        if is_row_file is not None and isinstance(found, FoundRow) is not is_row_file:
            raise place.error("", "rows and objects are mixed: put them into files of their own")
        is_row_file = isinstance(found, FoundRow)
        if is_row_file and place.path:
            raise place.error("", "rows must be one a line, not a JSON document")
        yield found


def _parse(place: Place, value: Any) -> FoundObject | FoundRow:
    if not isinstance(value, dict):
        raise place.error("", f"an object is expected, not {type(value).__name__}")
    if is_nested_deeper(value, MAX_NESTING):
        raise place.error("", f"it is nested more than {MAX_NESTING} levels deep")
    kind = KINDS.get(value["object"]) if isinstance(value.get("object"), str) else None
    if kind is None and "item" not in value:
        known = ", ".join(KINDS)
        raise place.error("object", f"it is {json.dumps(value.get('object'))[:100]}; known are: {known}")
    try:
        if kind is None:
            ROW.model_validate(value)
            return FoundRow(place)
        value = use_api_names(value)
        content = kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise place.error(".".join(map(str, first["loc"])), first["msg"]) from None
    if content.object != ITEM and (field := next(find_unstorable(value), None)) is not None:
        raise place.error(field, "it contains the character NUL")
    return FoundObject(place, content, json.dumps(value, sort_keys=True, separators=(",", ":")))


def _read_values(file: ExportFile) -> Iterator[tuple[Place, Any]]:
    with file.path.open("rb") as content:
        first = True
        for number, line in _read_lines(file, content):
            place = Place(file.name, number)
            try:
                value = _decode(line)
            except (ValueError, RecursionError) as error:
                if not first:
                    raise place.error("", f"it is not valid JSON: {error}") from None
                content.seek(0)
                yield from _expand(place, _read_document(place, content, error))
                return
            first = False
            yield from _expand(place, value)


def _read_lines(file: ExportFile, content: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := content.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > MAX_DOCUMENT_BYTES:
            raise Place(file.name, number).error("", f"the line has more than {MAX_DOCUMENT_BYTES} bytes")
        if number == 1:
            # Windows' programs begin a file with it.
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            yield number, line


def _read_document(place: Place, content: BinaryIO, line_error: Exception) -> Any:
    text = content.read(MAX_DOCUMENT_BYTES + 1)
    if len(text) > MAX_DOCUMENT_BYTES:
        raise place.error("", f"a document has at most {MAX_DOCUMENT_BYTES} bytes: write one object a line")
    try:
        return _decode(text.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        # The message about the whole file names the place at which it ends to be JSON.
        reason = line_error if b"\n" not in text.strip() else error
        raise place.error("", f"it is not valid JSON: {reason}") from None


def _expand(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    """Yield the objects of a value: itself, the members of an array, or those of a page of a list."""
    if isinstance(value, dict) and value.get("object") == "list" and isinstance(value.get("data"), list):
        members, prefix = value["data"], "data."
    elif isinstance(value, list):
        members, prefix = value, ""
    else:
        yield place, value
        return
    for position, member in enumerate(members):
        yield Place(place.file, place.line, f"{prefix}{position}"), member
