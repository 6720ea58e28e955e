"""The parser of rows agrees with Python's strict `json` on every line, valid or damaged."""

import json
import math
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import QUICK, THOROUGH
from trainers.data.faults import Fault
from trainers.data.files.json_line import MAX_DEPTH, RowParser

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
rows = st.dictionaries(texts, values, max_size=5)


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    """Return a line of JSON in which a few bytes were inserted, removed or replaced."""
    line = bytearray(json.dumps(draw(values | rows), ensure_ascii=draw(st.booleans())).encode() + b"\n")
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(line)))
        end = draw(st.integers(start, min(len(line), start + 2)))
        line[start:end] = draw(
            st.binary(max_size=2)
            | st.sampled_from([b"{", b"}", b'"', b":", b",", b"\\ud800", b"NaN", b"1e999", b"\r", b"\0"])
        )
    return bytes(line)


def parse_strictly(line: bytes) -> dict[str, Any] | None:
    """Return the object that `json` reads from a line; None if it is not a valid row."""

    def reject(constant: str) -> NoReturn:
        raise ValueError(constant)

    def parse_float(text: str) -> float:
        number = float(text)
        if math.isinf(number):
            raise ValueError(text)
        return number

    try:
        body = line.removesuffix(b"\r\n").removesuffix(b"\n")
        value = json.loads(body.decode(), parse_constant=reject, parse_float=parse_float)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and b"\r" not in body else None


def check_round_trip(row: dict[str, Any], ascii_only: bool) -> None:
    line = json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n"
    parser = RowParser()
    parsed = parser.parse(line)
    assert parsed == row and json.dumps(parsed) == json.dumps(row)
    assert parser.duplicate_key is None


def check_damaged(line: bytes) -> None:
    parsed, expected = RowParser().parse(line), parse_strictly(line)
    if expected is not None:
        assert json.dumps(parsed) == json.dumps(expected)
    else:
        assert parsed is None or isinstance(parsed, Fault)
        assert parsed is not None or not line.strip()


test_a_row_is_read_as_it_was_written = QUICK(given(rows, st.booleans())(check_round_trip))
test_a_damaged_line_is_read_as_json_reads_it_or_is_a_fault = QUICK(given(damaged_lines())(check_damaged))
test_many_damaged_lines = pytest.mark.slow(THOROUGH(given(damaged_lines())(check_damaged)))


@QUICK
@given(st.integers(1, 3 * MAX_DEPTH), st.sampled_from(["[]", '{"":}']))
def test_only_rows_within_the_limit_of_depth_are_accepted(depth: int, brackets: str) -> None:
    half = len(brackets) // 2 if brackets == "[]" else len(brackets) - 1
    text = brackets[:half] * depth + "0" + brackets[half:] * depth
    parsed = RowParser().parse(f'{{"a": {text}}}\n'.encode())
    assert isinstance(parsed, Fault) == (depth + 1 > MAX_DEPTH)
