import bz2
import gzip
import io
import json
import lzma
import sqlite3
import zipfile

import pytest

from trainers.data.faults import FaultCode
from trainers.data.files.file_checks import find_file_fault

ROW = '{"question": "몇?", "answer": "넷"}\n'


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.jsonl", ROW)
    return buffer.getvalue()


def _sqlite() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE rows (text)")
        content = connection.serialize()
    connection.close()
    return content


@pytest.mark.parametrize(
    ("content", "code", "advice"),
    [
        (b"", FaultCode.empty_file, "one JSON object"),
        (b"\xef\xbb\xbf", FaultCode.empty_file, "one JSON object"),
        (b"\n \n", FaultCode.empty_file, "one JSON object"),
        (gzip.compress(ROW.encode(), mtime=0), FaultCode.compressed_file, "gunzip"),
        (bz2.compress(ROW.encode()), FaultCode.compressed_file, "bunzip2"),
        (lzma.compress(ROW.encode()), FaultCode.compressed_file, "unxz"),
        (b"\x28\xb5\x2f\xfd....", FaultCode.compressed_file, "unzstd"),
        (_zip(), FaultCode.not_jsonl, "zip archive"),
        (_sqlite(), FaultCode.not_jsonl, "SQLite"),
        (b"PAR1\x15\x04", FaultCode.not_jsonl, "Parquet"),
        (b"%PDF-1.7\n", FaultCode.not_jsonl, "PDF"),
        (b"<!DOCTYPE html>\n<html>", FaultCode.not_jsonl, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", FaultCode.not_jsonl, "git lfs pull"),
        (bytes(4096), FaultCode.not_jsonl, "zero bytes"),
        (ROW.encode("utf-16"), FaultCode.wrong_encoding, "iconv -f UTF-16 "),
        (ROW.encode("utf-16-le"), FaultCode.wrong_encoding, "iconv -f UTF-16LE"),
        (ROW.encode("utf-16-be"), FaultCode.wrong_encoding, "iconv -f UTF-16BE"),
        (ROW.encode("utf-32"), FaultCode.wrong_encoding, "iconv -f UTF-32 "),
        (ROW.encode("cp949") * 3, FaultCode.wrong_encoding, "iconv -f CP949"),
        (json.dumps([json.loads(ROW)]).encode(), FaultCode.json_array, "jq -c '.[]'"),
        (json.dumps([json.loads(ROW)], indent=2).encode(), FaultCode.json_array, "jq -c '.[]'"),
        (json.dumps(json.loads(ROW), indent=2).encode(), FaultCode.pretty_printed, "jq -c ."),
    ],
)
def test_a_file_of_another_kind_has_one_fault_with_a_remedy(
    content: bytes, code: FaultCode, advice: str
) -> None:
    file = io.BytesIO(content)
    fault = find_file_fault(file)
    assert fault is not None
    assert fault.code is code
    assert advice in fault.message
    assert (fault.line, file.tell()) == (None, 0)


@pytest.mark.parametrize(
    "content",
    [
        ROW.encode(),
        b"\xef\xbb\xbf" + ROW.encode(),
        b"\n\n" + ROW.encode(),
        (ROW * 5000).encode(),
        ROW.encode("cp949") + ROW.encode() * 2,
        b"broken\n",
        b"{\n{}\n",
    ],
)
def test_a_file_of_lines_has_no_fault_as_a_whole(content: bytes) -> None:
    assert find_file_fault(io.BytesIO(content)) is None
