"""Goal: rows survive the conversion to JSON Lines, and faults name rows. Method: files as they are found."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from trainers.data.conversion.conversion import Conversion
from trainers.data.conversion.csv_table import CsvOptions, Delimiter, TextEncoding
from trainers.data.conversion.to_json_lines import convert_to_json_lines
from trainers.data.validate import ValidationReport, validate_conversion

Rows = list[dict[str, Any]]
MAX_BYTES = 1 << 26
KOREAN = "prompt,completion\n안녕,Hello\n"
ROWS: Rows = [{"prompt": "안녕", "completion": "Hello"}]


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., tuple[Rows, ValidationReport]]:
    """Return a function that converts bytes under a name; it returns the rows and the report."""

    def run(
        content: bytes, name: str, max_bytes: int = MAX_BYTES, **options: Any
    ) -> tuple[Rows, ValidationReport]:
        source, target = tmp_path / "source", tmp_path / "rows.jsonl"
        source.write_bytes(content)
        conversion = convert_to_json_lines(source, name, target, CsvOptions(**options), max_bytes)
        assert isinstance(conversion, Conversion)
        report = validate_conversion(target, conversion)
        lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else []
        return [json.loads(line) for line in lines], report

    return run


def to_parquet(path: Path, table: Any, **options: Any) -> bytes:
    parquet.write_table(pyarrow.table(table), path, **options)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "name", "options"),
    [
        (KOREAN.encode(), "a.csv", {}),
        (KOREAN.encode("utf-8-sig"), "A.CSV", {}),
        (KOREAN.encode("utf-16"), "a.csv", {}),
        (KOREAN.encode("cp949"), "a.csv", {"encoding": TextEncoding.cp949}),
        (KOREAN.replace("\n", "\r\n").encode(), "a.csv", {}),
        (KOREAN.replace(",", ";").encode(), "a.csv", {}),
        (KOREAN.replace(",", "\t").encode(), "a.tsv", {}),
        (KOREAN.replace(",", "|").encode(), "rows", {"delimiter": Delimiter.pipe}),
        (b"\n prompt , completion \n\n\xec\x95\x88\xeb\x85\x95,Hello\n\n", "a.csv", {}),
    ],
)
def test_a_csv_file_is_read_in_its_encoding_and_with_its_delimiter(
    convert: Callable[..., tuple[Rows, ValidationReport]], content: bytes, name: str, options: dict[str, Any]
) -> None:
    rows, report = convert(content, name, **options)
    assert rows == ROWS
    assert (report.fault_count, report.converted_from, report.format) == (0, "csv", "prompt_completion")


def test_a_quoted_cell_has_line_breaks_delimiters_and_quotes(
    convert: Callable[..., tuple[Rows, ValidationReport]],
) -> None:
    rows, report = convert(b'question,answer,id\n"a,\n""b""",\n"x","1\r\n#### 1",7\n', "a.csv")
    assert rows[1] == {"question": "x", "answer": "1\r\n#### 1", "id": "7"}
    (fault,) = report.faults
    assert (fault.line, fault.code) == (1, "wrong_columns")
    assert fault.message.startswith("The record in lines 2 to 3 has 2 cells, but the header has 3")


def test_a_fault_names_its_row_and_the_line_of_the_file_in_which_the_row_begins(
    convert: Callable[..., tuple[Rows, ValidationReport]],
) -> None:
    _, report = convert(b'prompt,completion\n"a\nb",1\n\n,2\nx,3\n,4\n5,6,7\n', "a.csv")
    assert [(fault.line, fault.file_line) for fault in report.faults] == [(2, 5), (4, 7), (5, 8)]
    assert "line 8" in report.faults[-1].message
    _, of_array = convert(b'[{"prompt": "", "completion": "a"}]', "a.json")
    assert [(fault.line, fault.file_line) for fault in of_array.faults] == [(1, None)]


def test_cells_of_lists_are_json_and_empty_optional_cells_are_absent(
    convert: Callable[..., tuple[Rows, ValidationReport]],
) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    cell = json.dumps(messages).replace('"', '""')
    rows, report = convert(f'messages,system\n"{cell}",\n"{cell}",Be brief.\n'.encode(), "a.csv")
    assert rows == [{"messages": messages}, {"messages": messages, "system": "Be brief."}]
    assert report.fault_count == 0


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"prompt,prompt\na,b\n", "invalid_header", "'prompt' twice"),
        (b"prompt,\na,b\n", "invalid_header", "no name for column 2"),
        (b"\n\n", "invalid_header", "is empty"),
        (KOREAN.encode("cp949"), "wrong_encoding", "state its encoding in the field `encoding`"),
        (b'prompt,completion\n"a,b\n' + b"c,d\n" * 5_000_000, "line_too_long", "begins in line 2"),
        (b"prompt,completion\n" + b"a\n" * 2000, "wrong_columns", "1,000 of the first 1,000 rows"),
        (b"prompt,completion\n" + b"a,b\n" * 50, "converted_too_large", "TUNESMITH_MAX_UPLOAD_BYTES"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_that_cannot_be_read_ends_with_one_fault_of_the_file(
    convert: Callable[..., tuple[Rows, ValidationReport]], content: bytes, code: str, message: str
) -> None:
    _, report = convert(content, "a.csv", 1000 if code == "converted_too_large" else MAX_BYTES)
    assert (report.faults[0].code, report.faults[0].line) == (code, None)
    assert message in report.faults[0].message


def test_bytes_in_another_encoding_are_a_fault_of_their_row(
    convert: Callable[..., tuple[Rows, ValidationReport]],
) -> None:
    content = KOREAN.encode() + "고양이,cat\n".encode("cp949") + "개,dog\n".encode()
    rows, report = convert(content, "a.csv")
    assert rows == [*ROWS, {}, {"prompt": "개", "completion": "dog"}]
    assert [(fault.line, fault.code) for fault in report.faults] == [(2, "invalid_utf8")]
    assert "The record in line 3" in report.faults[0].message


def test_an_unquoted_quote_is_a_fault_of_its_row(
    convert: Callable[..., tuple[Rows, ValidationReport]],
) -> None:
    rows, report = convert(b'prompt,completion\n"a" b,c\n1,2\n', "a.csv")
    assert rows == [{}, {"prompt": "1", "completion": "2"}]
    assert [(fault.line, fault.code) for fault in report.faults] == [(1, "invalid_csv")]


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}], ids=str)
def test_elements_of_an_array_become_lines_as_they_are_written(
    convert: Callable[..., tuple[Rows, ValidationReport]], layout: dict[str, Any]
) -> None:
    rows = [
        {"prompt": f'[{n}] {{\\ "x"', "completion": "é" * n, "nested": [{"a": [1.50, None]}]}
        for n in range(300)
    ]
    content = json.dumps(rows, ensure_ascii=False, **layout).encode("utf-8-sig")
    converted, report = convert(content, "rows.json")
    assert converted == rows
    assert (report.row_count, report.converted_from) == (300, "json_array")


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b'[{"prompt": "a", "completion": "b"}, 5]', [(2, "not_an_object")]),
        (b'[{"prompt": "a", "completion": NaN}]', [(1, "not_finite_number")]),
        (b'[{"prompt": "a", "completion": "b"}, {"prompt": "a"', [(None, "invalid_json")]),
        (b'[{"prompt": "a", "completion": "b"} {"prompt": "a"}]', [(None, "invalid_json")]),
        (b'[{"prompt": "a", "completion": "b"}]]', [(None, "invalid_json")]),
        (b'[{"prompt": "\xff", "completion": "b"}]', [(None, "invalid_utf8")]),
        (b"[" * 100_000, [(None, "invalid_json")]),
        (b"[]", [(None, "empty_file")]),
    ],
)
def test_an_invalid_array_is_a_fault_of_its_element_or_of_the_file(
    convert: Callable[..., tuple[Rows, ValidationReport]],
    content: bytes,
    faults: list[tuple[int | None, str]],
) -> None:
    _, report = convert(content, "rows.json")
    assert [(fault.line, fault.code) for fault in report.faults] == faults


@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(codec="utf-8")),
            st.recursive(
                st.none() | st.integers() | st.text(st.characters(codec="utf-8")), st.lists, max_leaves=4
            ),
        ),
        max_size=6,
    ),
    st.sampled_from([None, 1]),
)
def test_any_array_survives(tmp_path_factory: pytest.TempPathFactory, rows: Rows, indent: int | None) -> None:
    folder = tmp_path_factory.mktemp("array")
    (folder / "source").write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
    conversion = convert_to_json_lines(folder / "source", "a.json", folder / "rows", CsvOptions(), MAX_BYTES)
    assert conversion is not None
    assert conversion.file_fault is None
    lines = (folder / "rows").read_bytes().split(b"\n")[:-1]
    assert [json.loads(line) for line in lines] == rows


def test_rows_of_parquet_have_the_fields_that_are_not_null(
    convert: Callable[..., tuple[Rows, ValidationReport]], tmp_path: Path
) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    chats = [
        [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "Hello"}],
        [{"role": "user", "content": "f?"}, call],
    ]
    table = {"messages": chats, "system": [None, "Be brief."], "score": [float("nan"), 0.5]}
    rows, report = convert(to_parquet(tmp_path / "a.parquet", table), "a.parquet")
    assert rows[0] == {"messages": chats[0]}
    assert (rows[1]["system"], rows[1]["score"]) == ("Be brief.", 0.5)
    assert rows[1]["messages"][1] == {name: value for name, value in call.items() if value is not None}
    assert (report.fault_count, report.converted_from) == (0, "parquet")


def test_bytes_in_parquet_are_text_or_a_fault_of_their_row(
    convert: Callable[..., tuple[Rows, ValidationReport]], tmp_path: Path
) -> None:
    table = {"prompt": [b"a", b"\xff"], "completion": ["b", "c"]}
    rows, report = convert(to_parquet(tmp_path / "a.parquet", table), "a.parquet")
    assert rows == [{"prompt": "a", "completion": "b"}, {}]
    assert [(fault.line, fault.code) for fault in report.faults] == [(2, "unsupported_content")]
    assert report.faults[0].message.startswith("Row 2 of the Parquet file contains bytes that are not text")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize(
    ("content", "rows", "code", "message"),
    [
        # Many megabytes of text in a file of some kilobytes, as one value and as many rows.
        ("x" * 150_000_000, 1, "parquet_unreadable", "more than 256 MiB of memory"),
        ("x" * 1_000_000, 100, "converted_too_large", "TUNESMITH_MAX_UPLOAD_BYTES"),
    ],
)
def test_a_parquet_file_that_expands_is_stopped_by_the_limits(
    convert: Callable[..., tuple[Rows, ValidationReport]],
    tmp_path: Path,
    content: str,
    rows: int,
    code: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainers.data.conversion.parquet.MAX_MEMORY_BYTES", 256 << 20)
    table = {"prompt": [content] * rows, "completion": ["b"] * rows}
    packed = to_parquet(tmp_path / "a.parquet", table, compression="zstd")
    assert len(packed) < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, report = convert(packed, "a.parquet")
    assert (report.faults[0].code, report.faults[0].line) == (code, None)
    assert message in report.faults[0].message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_damaged_parquet_file_is_named(
    convert: Callable[..., tuple[Rows, ValidationReport]], tmp_path: Path
) -> None:
    whole = to_parquet(tmp_path / "a.parquet", {"prompt": ["a"] * 100, "completion": ["b"] * 100})
    for content in (whole[:-20], b"PAR1" + bytes(200) + b"PAR1", whole.replace(whole[8:40], bytes(32))):
        _, report = convert(content, "a.parquet")
        assert (report.faults[0].code, report.faults[0].line) == ("parquet_unreadable", None)


def test_a_completion_of_a_pair_that_looks_like_a_list_stays_text(convert: Callable[..., Any]) -> None:
    messages = [{"role": "assistant", "content": "4"}]
    cells = json.dumps(messages).replace('"', '""')
    table = f'prompt,chosen,rejected\nPrimes?,"[2, 3]",[]\nSum?,"{cells}",no\n'
    rows, _ = convert(table.encode(), "pairs.csv")
    assert rows == [
        {"prompt": "Primes?", "chosen": "[2, 3]", "rejected": "[]"},
        {"prompt": "Sum?", "chosen": messages, "rejected": "no"},
    ]


@pytest.mark.parametrize("end", ['"x" y,z\n5,6\n', "3,4\n"])
def test_a_quote_that_is_not_closed_names_the_rows_that_it_hides(
    convert: Callable[..., tuple[Rows, ValidationReport]], end: str
) -> None:
    _, report = convert(f'prompt,completion\n1,2\na,"b\n3,4\n{end}'.encode(), "a.csv")
    (fault,) = report.faults
    assert (fault.line, fault.file_line, fault.code) == (2, 3, "invalid_csv")
    assert fault.message.startswith("The record in lines 3 to 5 is not valid CSV")
    assert "A quote that opens in line 3 is probably not closed" in fault.message
