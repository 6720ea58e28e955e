"""The input file of a batch: its faults by line, its limits, and lines that are read again one by one."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.batch import input_file
from serving.batch.files import MAX_FAULTS
from serving.batch.input_file import read_input
from trainers.configs import BatchEndpoint

CHATS = BatchEndpoint.chat_completions


def line(custom_id: Any = "a", model: str = "m", **fields: Any) -> str:
    body = {"model": model, "messages": []}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHATS, "body": body} | fields)


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_lines_are_read_again_by_their_number_and_found_by_their_id(tmp_path: Path) -> None:
    path = write(tmp_path, line("ä"), "", line("b", "n"), "  ", line("c"))
    found, faults = read_input(path, CHATS, {"m", "n"})
    assert (faults, found.models, list(found.model_numbers)) == ([], ["m", "n"], [0, 1, 0])
    with path.open("rb") as file:
        assert [found.read(file, number).custom_id for number in (2, 0, 1)] == ["c", "ä", "b"]
    assert [found.find(custom_id) for custom_id in ("ä", "c", "x")] == [0, 2, None]


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        ("[]", "invalid_json_line", None),
        ('{"custom_id": "\udc80"}', "invalid_json_line", None),
        ("[" * 100_000, "invalid_json_line", None),
        (line(custom_id=""), "invalid_type", "custom_id"),
        (line(custom_id=7), "invalid_type", "custom_id"),
        (line(custom_id="x" * 513), "invalid_type", "custom_id"),
        (line(method="post"), "invalid_method", "method"),
        (line(url="/v1/completions"), "url_mismatch", "url"),
        (line(body=[]), "invalid_json_line", "body"),
        (line(body={"messages": []}), "missing_required_parameter", "body.model"),
        (line(body={"model": 7}), "missing_required_parameter", "body.model"),
        (line(body={"model": "m", "stream": True}), "invalid_value", "body.stream"),
        (line(model="x"), "model_not_found", "body.model"),
        (line().replace('"a"', "1e999"), "invalid_value", "custom_id"),
        (line().replace('"m"', "1e999"), "invalid_value", "body.model"),
    ],
)
def test_a_fault_has_a_code_and_its_field(tmp_path: Path, content: str, code: str, param: str | None) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(f"{line('first')}\n{content}\n".encode("utf-8", "surrogateescape"))
    faults = read_input(path, CHATS, {"m"})[1]
    assert [(fault.line, fault.code, fault.param) for fault in faults] == [(2, code, param)]


def test_a_file_without_requests_is_a_fault(tmp_path: Path) -> None:
    assert [fault.code for fault in read_input(write(tmp_path, "", " "), CHATS, None)[1]] == ["empty_file"]


def test_a_long_line_is_refused_and_the_next_one_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(input_file, "MAX_BODY_BYTES", 200)
    path = write(tmp_path, line("a" * 1000), line("b"))
    found, faults = read_input(path, CHATS, None)
    assert [(fault.line, fault.code) for fault in faults] == [(1, "request_too_large")]
    assert found.find("b") == 0


def test_requests_and_faults_have_limits(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(input_file, "MAX_BATCH_LINES", 2)
    path = write(tmp_path, line("a"), line("b"), line("c"))
    assert [(fault.line, fault.code) for fault in read_input(path, CHATS, None)[1]] == [(3, "too_many_tasks")]
    path = write(tmp_path, *["{"] * 200)
    assert len(read_input(path, CHATS, None)[1]) == MAX_FAULTS
