import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.data.faults import Fault, FaultCode
from trainers.data.files.json_line import RowParser
from trainers.data.files.jsonl import MAX_LINE_BYTES, iter_lines, iter_rows, read_rows, save_rows
from trainers.data.formats import Row

GOOD = b'{"prompt": "a", "completion": "b"}\n'

BAD_LINES = {
    FaultCode.invalid_json: [b"{'prompt': 1}\n", b'{"a": 1,}\n', b'{"a": 1} x\n', b"x\n", b'{"a": }\n'],
    FaultCode.bare_carriage_return: [b'{"a": 1}\r{"a": 2}\n', b'{"a": 1}\r\r\n'],
    FaultCode.invalid_utf8: [b'{"a": "\xff"}\n', b'{"a": "\xed\xa0\x80"}\n', b'{"a": "\xc0\xaf"}\n'],
    FaultCode.byte_order_mark: [b'\xef\xbb\xbf{"a": 1}\n'],
    FaultCode.nul_byte: [b'{"a": "\0"}\n', b"\0\0\0\n"],
    FaultCode.not_finite_number: [b'{"a": NaN}\n', b'{"a": -Infinity}\n', b'{"a": 1e999}\n'],
    FaultCode.number_too_long: [b'{"a": ' + b"7" * 5000 + b"}\n"],
    FaultCode.too_deep: [
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}\n",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    ],
    FaultCode.too_complex: [b'{"a": [' + b"[]," * 1_000_000 + b"[]]}\n"],
    FaultCode.lone_surrogate: [b'{"a": "\\ud83d"}\n', b'{"\\uDE00": 1}\n'],
    FaultCode.not_an_object: [b"[1]\n", b'"text"\n', b"3\n", b"null\n"],
}
CASES = [(code, line) for code, lines in BAD_LINES.items() for line in lines]


@pytest.mark.parametrize(
    ("code", "line"), CASES, ids=[f"{code}-{index}" for index, (code, _) in enumerate(CASES)]
)
def test_a_bad_line_has_its_fault_and_the_next_one_is_read(code: FaultCode, line: bytes) -> None:
    parser = RowParser()
    found = parser.parse(line)
    assert isinstance(found, Fault)
    assert found.code is code
    assert found.message.endswith(".")
    assert parser.parse(GOOD) == {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1}',
        b'{"a": 1}\n',
        b'{"a": 1}\r\n',
        b' \t{"a": 1}  \n',
        b'{"a": "\\ud83d\\ude00 \\\\ud83d"}\n',
        '{"a": "안녕 😀"}\n'.encode(),
        b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}\n",
        b'{"a": [' + b"[]," * 100 + b"[]]}\n",
    ],
)
def test_a_valid_line_is_parsed_as_by_json(line: bytes) -> None:
    assert RowParser().parse(line) == json.loads(line)


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"   \n", b"", b"\t"])
def test_a_blank_line_is_neither_row_nor_fault(line: bytes) -> None:
    assert RowParser().parse(line) is None


@pytest.mark.parametrize("line", [b'{"a": "hal', b'{"a": 1', b"{", b'{"a": "\xec\x95'])
def test_a_truncated_last_line_is_distinguished_from_invalid_json(line: bytes) -> None:
    fault = RowParser().parse(line)
    assert isinstance(fault, Fault)
    assert fault.code is FaultCode.truncated_line


def test_a_repeated_key_is_stored_until_the_next_line() -> None:
    parser = RowParser()
    assert parser.parse(b'{"a": {"b": 1, "b": 2}}') == {"a": {"b": 2}}
    assert parser.duplicate_key == "b"
    parser.parse(GOOD)
    assert parser.duplicate_key is None


def test_line_numbers_are_correct_for_all_line_endings() -> None:
    file = io.BytesIO(b"\xef\xbb\xbfone\ntwo\r\n\nfour")
    assert list(iter_lines(file)) == [(1, b"one\n"), (2, b"two\r\n"), (3, b"\n"), (4, b"four")]


@pytest.mark.parametrize("length", [9, 10, 11, 25])
def test_only_a_line_over_the_limit_is_a_fault(length: int) -> None:
    file = io.BytesIO(b"x\n" + b"a" * length + b"\nlast\n")
    lines = dict(iter_lines(file, max_line_bytes=10))
    assert (lines[1], lines[3]) == (b"x\n", b"last\n")
    assert isinstance(lines[2], Fault) == (length > 10)


def test_a_line_of_100_megabytes_is_skipped_without_reading_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.writelines([GOOD, b'{"prompt": "', *[b"a" * 2**20] * 100, b'"}\n', GOOD])
    tracemalloc.start()
    with path.open("rb") as file:
        kinds = [type(line) for _, line in iter_lines(file)]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kinds == [bytes, Fault, bytes]
    assert peak_bytes < 40 * 2**20


def test_rows_are_read_with_their_line_numbers(write: Callable[..., Path]) -> None:
    path = write({"a": 1}, b"\n", b"broken\n", {"a": 2}, {"a": 3})
    assert read_rows(path, offset=0, limit=10) == [(1, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]
    assert read_rows(path, offset=1, limit=1) == [(4, {"a": 2})]
    assert read_rows(path, offset=3, limit=10) == []
    assert read_rows(path, offset=0, limit=0) == []


def test_pages_of_large_rows_end_early_and_lose_none(write: Callable[..., Path]) -> None:
    path = write(*({"a": str(number) * 2**20} for number in range(9)), {"b": "x" * (15 * 2**20)})
    pages, offset = [], 0
    while page := read_rows(path, offset=offset, limit=100):
        pages.append([number for number, _ in page])
        offset += len(page)
    assert pages == [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10]]


def test_a_row_as_long_as_a_line_may_be_is_a_page_of_its_own(write: Callable[..., Path]) -> None:
    row = {"a": "x" * (MAX_LINE_BYTES - len('{"a": ""}'))}
    path = write(row, row)
    assert read_rows(path, offset=0, limit=2) == [(1, row)]
    assert read_rows(path, offset=1, limit=2) == [(2, row)]


def test_iter_rows_stops_at_the_first_invalid_line_and_names_it(write: Callable[..., Path]) -> None:
    rows = iter_rows(write({"a": 1}, b"\n", b"broken\n"))
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: The line is not valid JSON"):
        next(rows)


def test_a_file_that_is_not_jsonl_has_no_rows_to_read(write: Callable[..., Path]) -> None:
    path = write(b"\x1f\x8b compressed")
    assert read_rows(path, offset=0, limit=5) == []
    with pytest.raises(ValueError, match="gunzip"):
        next(iter_rows(path))


def test_saved_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    rows: list[Row] = [{"text": "안녕\n"}, {"n": 1.5, "deep": [{"a": None}]}, {}]
    assert save_rows(tmp_path / "rows.jsonl", iter(rows)) == 3
    assert [row for _, row in iter_rows(tmp_path / "rows.jsonl")] == rows


@pytest.mark.parametrize(
    "row", [{"a": float("nan")}, {"a": "\udc00"}, {"a": {1}}, {"a": "x" * MAX_LINE_BYTES}]
)
def test_a_row_that_cannot_be_read_back_is_rejected_and_the_old_file_remains(
    tmp_path: Path, row: Row
) -> None:
    path = tmp_path / "rows.jsonl"
    save_rows(path, [{"a": 1}])
    with pytest.raises(ValueError, match="Row 2"):
        save_rows(path, [{"a": 2}, row])
    assert [file.read_text() for file in tmp_path.iterdir()] == ['{"a": 1}\n']


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": "x: y", "a": 1}',
        b'{"a": "\\u003a", "a": 1}',
        b'{"a" : 1, "a" : 2}',
        b'{"a": [{"b": 1, "b": 2}]}',
        b'{"a": [{"b": {"c": 1, "c": 2}}]}',
        b'{"a": [[{"b": 1, "b": 2}]]}',
        b'{"a": ":\\u003a", "a": "::"}',
    ],
)
def test_a_repeated_key_is_found_at_any_depth(line: bytes) -> None:
    parser = RowParser()
    assert parser.parse(line) == json.loads(line)
    assert parser.duplicate_key in ("a", "b", "c")


def test_text_that_looks_like_a_key_is_not_a_repeated_key() -> None:
    parser = RowParser()
    for text in ('": "', ": : :", '\\": 1', "\u003a", "{[:"):
        for row in ({"a": text}, {"a": [{"b": text}, {"b": text, "c": [text]}]}):
            assert parser.parse(json.dumps(row).encode()) == row
            assert parser.duplicate_key is None


def test_the_first_parser_never_disagrees_with_json_about_a_mutated_line() -> None:
    rng, parser, valid = random.Random(7), RowParser(), 0
    lines = [
        json.dumps({"a": [{"b": 1.5e300, "c": "안:\n"}, {}], "d": -0, "e": None, "f": 10**30}).encode(),
        b'{"a": "\\ud83d\\ude00", "b": [1, [2, {"c": true}]], "n": 1e-400}',
    ]
    for _ in range(20_000):
        line = bytearray(rng.choice(lines))
        for _ in range(rng.randint(0, 2)):
            line[rng.randrange(len(line))] = rng.choice(b'{}[]",:\\0123456789eE.+-u ax\x00\xff\t')
        row = parser.parse(bytes(line))
        if isinstance(row, dict):
            valid += 1
            assert repr(row) == repr(json.loads(line))
    assert valid > 2000
