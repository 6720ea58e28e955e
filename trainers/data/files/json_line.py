"""One line of JSON Lines as an object, or as the fault that keeps it from being one."""

import json
import math
import re
from typing import Any, Final, NoReturn

from trainers.data.faults import Fault, FaultCode, quote_value, type_name
from trainers.data.files.file_checks import UTF8_MARK
from trainers.data.formats import Row

# A nested list takes 2 bytes in the file and 88 in memory, an object of one key 7 and 230.
# A million of them stay below 250 MB, whatever a line of 16 MiB holds besides.
MAX_MARKS: Final = 1_000_000
# Pydantic and the JSON encoder give up somewhere above 200 levels; no shape of training data needs 64.
MAX_DEPTH: Final = 64
SURROGATE: Final = re.compile(rb"\\u[dD]")


class RowParser:
    """Turns lines into objects; it remembers a key that the last object held twice."""

    def __init__(self) -> None:
        self.duplicate_key: str | None = None
        plain = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
        self._scan = plain.scan_once  # type: ignore[attr-defined]  # typeshed leaves it out.
        self._decoder = json.JSONDecoder(
            parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=self._object
        )

    def parse(self, line: bytes) -> Row | Fault | None:
        """The object on a line, or the fault that keeps it from being one; None for a blank line."""
        self.duplicate_key = None
        if len(line) < 3 and not line.strip():
            return None
        body = line
        if b"\r" in line:
            body = line[:-2] if line.endswith(b"\r\n") else line
            if b"\r" in body:
                return bare_return_fault()
        if len(body) > MAX_MARKS and sum(map(body.count, (b"{", b"[", b":"))) > MAX_MARKS:
            return _too_complex()
        try:
            value = self._value(body.decode(), body)
        except StopIteration:
            return None
        except (ValueError, RecursionError) as error:
            return _unreadable(error, line)
        return _checked(value, body)

    def _value(self, text: str, body: bytes) -> Any:
        # The scanner alone is faster than decode(), which searches twice for white space, and needs no hook.
        try:
            value, end = self._scan(text, 0)
        except StopIteration:
            if not text.strip():
                raise
            return self._decoder.decode(text)
        if text[end:] in ("", "\n") and _is_plain(value, body):
            return value
        del value
        value = self._decoder.decode(text)
        if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
            raise RecursionError
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            self.duplicate_key = _first_repeated(pairs)
        return row


def _is_plain(value: Any, body: bytes) -> bool:
    """Whether a value surely holds no key twice and is not nested too deep; False leaves it open.

    A line has a colon for each key that was written and for each colon within its strings. If that is as many
    as are counted in the value and its lists' objects, no key was lost, and what lies deeper has no keys.
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
    return not _has_escaped_colon(body) and colons == sum(map(_colons, (value, *entries)))


def _has_escaped_colon(body: bytes) -> bool:
    return b"\\" in body and b"\\u003" in body


def _colons(entry: Row) -> int:
    return sum([text.count(":") for text in entry.values() if type(text) is str])


def _first_repeated(pairs: list[tuple[str, Any]]) -> str | None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def _checked(value: Any, body: bytes) -> Row | Fault:
    if not isinstance(value, dict):
        return Fault(
            code=FaultCode.not_an_object,
            message=f"The line holds {type_name(value)}: write one JSON object, `{{…}}`, on each line.",
        )
    # Half a surrogate pair can only come from an escape; raw ones fail to decode.
    if b"\\" in body and SURROGATE.search(body) and not _is_encodable(value):
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


class NotFiniteNumber(ValueError):
    """A number which JSON does not know."""


def _refuse_constant(name: str) -> NoReturn:
    raise NotFiniteNumber(name)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NotFiniteNumber(digits)
    return number


def _unreadable(error: ValueError | RecursionError, line: bytes) -> Fault:
    is_cut_off = not line.endswith(b"\n")
    match error:
        case RecursionError():
            return _too_deep()
        case NotFiniteNumber():
            return Fault(
                code=FaultCode.not_finite_number,
                message=f"JSON has no number {quote_value(str(error))}: write a finite number.",
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
        return nul_byte_fault(line)
    if line.startswith(UTF8_MARK):
        return Fault(
            code=FaultCode.byte_order_mark,
            message="The line begins with a byte order mark, as joined files leave it: remove it.",
        )
    return Fault(
        code=FaultCode.invalid_json,
        message=f"The line is not JSON: {error.msg} at column {error.colno}. Write one object on each line.",
    )


def nul_byte_fault(line: bytes) -> Fault:
    """The fault of a line with a zero byte."""
    return Fault(
        code=FaultCode.nul_byte,
        message=f"Byte {line.index(0) + 1} of the line is zero, as broken copies leave it: remove it.",
    )


def bare_return_fault() -> Fault:
    """The fault of a carriage return which no line feed follows."""
    return Fault(
        code=FaultCode.bare_carriage_return,
        message="A carriage return stands alone, as in files with the line endings of old Macs: "
        "end lines with a line feed, for example with `tr '\\r' '\\n'`.",
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
