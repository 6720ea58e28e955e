"""Parser of one line of JSON Lines."""

import json
import math
import re
from typing import Any, Final, NoReturn

import msgspec

from trainers.data.faults import Fault, FaultCode, quote_value, type_name
from trainers.data.files.file_checks import UTF8_MARK
from trainers.data.formats import Row

# A nested list takes 2 bytes in the file and 88 in memory, an object with one key 7 and 230. A million of
# them stay below 250 MB, whatever else is in a line of 16 MiB.
MAX_BRACKETS_AND_COLONS: Final = 1_000_000
# Pydantic and the JSON encoder fail somewhere above 200 levels; no format of training data needs 64.
MAX_DEPTH: Final = 64
SURROGATE: Final = re.compile(rb"\\u[dD]")


class RowParser:
    """Parser of lines; `duplicate_key` is a repeated key in the last line, of which JSON keeps one value.

    msgspec parses nearly every line. The others are parsed again by `json`, whose hook sees repeated keys and
    whose errors name the position (docs/decisions/0021-rows-are-parsed-by-msgspec.md).
    """

    def __init__(self) -> None:
        self.duplicate_key: str | None = None
        self._decode = msgspec.json.Decoder().decode
        self._decoder = json.JSONDecoder(
            parse_constant=_reject_constant, parse_float=_parse_float, object_pairs_hook=self._object
        )

    def parse(self, line: bytes) -> Row | Fault | None:
        """Return the object on a line or its fault; None for a blank line."""
        self.duplicate_key = None
        if len(line) < 3 and not line.strip():
            return None
        body = line
        if b"\r" in line:
            body = line[:-2] if line.endswith(b"\r\n") else line
            if b"\r" in body:
                return bare_return_fault()
        if (
            len(body) > MAX_BRACKETS_AND_COLONS
            and sum(map(body.count, (b"{", b"[", b":"))) > MAX_BRACKETS_AND_COLONS
        ):
            return _too_complex()
        try:
            value: Row = self._decode(body)
            if _is_plain(value, body):
                return value
            del value  # A row of 16 MiB can use 250 MB of memory: free it before it is parsed again.
        except (ValueError, RecursionError):
            pass  # The second parser finds the fault.
        return self._parse_again(body, line)

    def _parse_again(self, body: bytes, line: bytes) -> Row | Fault | None:
        try:
            text = body.decode()
            if not text.strip():
                return None
            value = self._decoder.decode(text)
            if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
                return _too_deep()
        except (ValueError, RecursionError) as error:
            return _parse_fault(error, line)
        return _check_value(value, body)

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            self.duplicate_key = _find_repeated_key(pairs)
        return row


def _is_plain(value: Any, body: bytes) -> bool:
    """Return whether a value surely has no repeated key and little nesting; False means unknown.

    A line contains a colon per key and the colons within its strings. If their number equals the number of
    keys and colons in the value and in the objects of its lists, no key was lost, and deeper values have no
    keys.
    """
    if type(value) is not dict or body.count(b"[") > MAX_DEPTH // 2:
        return False
    keys, entries = len(value), []
    for child in value.values():
        if type(child) is list:
            entries += child
    for entry in entries:
        if type(entry) is not dict:
            return False
        keys += len(entry)
    colons = body.count(b":") - keys
    if not colons:
        return True
    # `\u003a` is an escaped colon.
    return b"\\u003" not in body and colons == sum(map(_count_colons, (value, *entries)))


def _count_colons(entry: Row) -> int:
    return sum([text.count(":") for text in entry.values() if type(text) is str])


def _find_repeated_key(pairs: list[tuple[str, Any]]) -> str | None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_value(value: Any, body: bytes) -> Row | Fault:
    if not isinstance(value, dict):
        return Fault(
            code=FaultCode.not_an_object,
            message=f"The line contains {type_name(value)} instead of an object: write one JSON object, "
            f"`{{…}}`, per line.",
        )
    # Half a surrogate pair can only come from an escape; raw bytes fail to decode.
    if b"\\" in body and SURROGATE.search(body) and not _is_encodable(value):
        return Fault(
            code=FaultCode.lone_surrogate,
            message="A string contains half of a surrogate pair, which is not a character: write the "
            "whole pair, or remove the `\\ud…` escape.",
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


class NotFiniteNumber(ValueError):
    """A number that JSON cannot represent."""


def _reject_constant(name: str) -> NoReturn:
    raise NotFiniteNumber(name)


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise NotFiniteNumber(text)
    return number


def _parse_fault(error: ValueError | RecursionError, line: bytes) -> Fault:
    is_cut_off = not line.endswith(b"\n")
    match error:
        case RecursionError():
            return _too_deep()
        case NotFiniteNumber():
            return Fault(
                code=FaultCode.not_finite_number,
                message=f"The number {quote_value(str(error))} is not valid JSON: write a finite number, "
                "null or a string.",
            )
        case UnicodeDecodeError() if not (is_cut_off and error.reason == "unexpected end of data"):
            return Fault(
                code=FaultCode.invalid_utf8,
                message=f"Byte {error.start + 1} of the line is not UTF-8: save the file as UTF-8.",
            )
        case json.JSONDecodeError() if not is_cut_off or b"\0" in line or line.startswith(UTF8_MARK):
            return _invalid_json(error, line)
        case json.JSONDecodeError() | UnicodeDecodeError():
            return Fault(
                code=FaultCode.truncated_line,
                message="The last line ends within an object, so the file is truncated: upload it again.",
            )
        case _:
            return Fault(
                code=FaultCode.number_too_long,
                message="A number has thousands of digits: shorten it, or write it as a string.",
            )


def _invalid_json(error: json.JSONDecodeError, line: bytes) -> Fault:
    if b"\0" in line:
        return nul_byte_fault(line)
    if line.startswith(UTF8_MARK):
        return Fault(
            code=FaultCode.byte_order_mark,
            message="The line begins with a byte order mark, which concatenated files leave: remove it.",
        )
    return Fault(
        code=FaultCode.invalid_json,
        message=f"The line is not valid JSON: {error.msg} at column {error.colno}. Write one object per "
        "line.",
    )


def nul_byte_fault(line: bytes) -> Fault:
    """Return the fault of a line with a zero byte."""
    return Fault(
        code=FaultCode.nul_byte,
        message=f"Byte {line.index(0) + 1} of the line is zero, which a failed copy leaves: remove it.",
    )


def bare_return_fault() -> Fault:
    """Return the fault of a carriage return without a line feed."""
    return Fault(
        code=FaultCode.bare_carriage_return,
        message="The line contains a carriage return without a line feed, the line ending of old Macs: end "
        "lines with a line feed, for example with `tr '\\r' '\\n'`.",
    )


def _too_complex() -> Fault:
    return Fault(
        code=FaultCode.too_complex,
        message=f"The row contains more than {MAX_BRACKETS_AND_COLONS:,} brackets and colons: split it "
        "into several rows.",
    )


def _too_deep() -> Fault:
    return Fault(
        code=FaultCode.too_deep,
        message=f"The row is nested more than {MAX_DEPTH} levels deep: flatten it, or write the inner "
        "part as a string.",
    )
