"""An upload writes nothing outside its own folder, leaves nothing behind, and is bounded while it arrives."""

import asyncio
import gzip
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from starlette.testclient import TestClient

from app.datasets.upload import receive_upload
from app.http.errors import PayloadTooLarge
from app.settings import get_settings
from tests.security.regression import Regression, ignore

ROW = b'{"prompt": "1 + 1 =", "completion": "2"}\n'
BOUNDARY = "b0undary"
NAMES = [
    "../../escaped.jsonl",
    "..\\..\\escaped.jsonl",
    "/tmp/escaped.jsonl",
    "%2e%2e%2fescaped.jsonl",
    "\x00escaped",
    "C:\\escaped.jsonl",
    "a" * 5000,
]


def list_files(folder: Path) -> set[Path]:
    """Return the files of the data directory, without the database."""
    return {path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("tunesmith.db")}


def form(filename: str, content: bytes, *, end: bool = True, field: str = "file") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + (f"\r\n--{BOUNDARY}--\r\n".encode() if end else b"")


def upload(client: TestClient, body: bytes, boundary: str = BOUNDARY) -> int:
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return client.post("/api/v1/datasets", content=body, headers=headers).status_code


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_chooses_no_path(client: TestClient, tmp_path: Path, name: str) -> None:
    # What other tests write below these folders is theirs.
    outside = [*tmp_path.parents][:3]
    before = {path for folder in outside for path in folder.iterdir() if "escaped" in path.name}
    assert upload(client, form(name, ROW)) in (201, 422)
    after = {path for folder in outside for path in folder.iterdir() if "escaped" in path.name}
    assert after == before
    assert [path for path in list_files(tmp_path) if "escaped" in str(path)] == []


@pytest.mark.parametrize(
    "body",
    [
        form("a.jsonl", ROW, end=False),
        form("a.jsonl", ROW)[:-30],
        form("a.jsonl", ROW, field="other"),
        # Its first part is whole.
        form("a.jsonl", ROW, end=False) + b"\r\n" + form("b.jsonl", ROW, end=False),
        b"",
    ],
)
def test_a_broken_upload_leaves_nothing(client: TestClient, tmp_path: Path, body: bytes) -> None:
    before = list_files(tmp_path)
    assert upload(client, body) == 422
    assert list_files(tmp_path) == before
    assert client.get("/api/v1/datasets").json()["items"] == []


def test_an_upload_is_stopped_at_the_limit(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_settings(), "max_upload_bytes", 100_000)
    before = list_files(tmp_path)
    assert upload(client, form("a.jsonl", ROW * 10_000)) == 413
    assert list_files(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="open files are read from /proc")
def test_a_stopped_upload_holds_no_space(tmp_path: Path) -> None:
    chunks = [form("a.jsonl", ROW * 40_000, end=False), ROW * 40_000]
    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": True}

    request = Request({"type": "http", "headers": headers}, receive)
    with pytest.raises(PayloadTooLarge) as caught:
        asyncio.run(receive_upload(request, tmp_path, max_bytes=2 << 20))
    assert caught.traceback  # It keeps what the upload was read by.
    [path] = tmp_path.iterdir()
    assert path.stat().st_size > 1 << 20
    links = list(Path("/proc/self/fd").iterdir())
    assert path not in [link.readlink() for link in links if os.path.lexists(link)]


def test_a_field_of_a_form_is_bounded(client: TestClient) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    text = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="name"\r\n\r\n{"a" * 5000}\r\n'
    body = text.encode() + form("a.jsonl", ROW)
    response = client.post("/api/v1/datasets", content=body, headers=headers)
    assert response.status_code == 422
    assert "its field `name` is longer than 4096 bytes" in response.json()["error"]["message"]


def test_a_part_in_another_encoding_is_refused(client: TestClient) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    body = form("a.jsonl", ROW).replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)
    response = client.post("/api/v1/datasets", content=body, headers=headers)
    assert response.status_code == 422
    assert "its part `file` is encoded as base64; send it as it is" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "row",
    [
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b', "completion": "2"}\n',
        b'{"prompt": "1", "completion": ' + b"9" * 100_000 + b"}\n",
        b'{"prompt": "1", "completion": "\\ud800"}\n',
        gzip.compress(ROW * 1000),
    ],
)
def test_a_hostile_row_is_a_fault_of_its_line_and_is_never_trained_on(client: TestClient, row: bytes) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = client.post("/api/v1/datasets", content=form("a.jsonl", ROW + row), headers=headers).json()
    assert answer["trainable"] is False and answer["report"]["faults"][0]["line"] == 2
    stage = {"stage": "sft", "base": "org/model", "dataset": answer["id"]}
    assert client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]}).status_code == 409


REGRESSIONS = [
    Regression(
        "a dataset with faults is trained on",
        "app.jobs.resolve:require_ready",
        ignore,
        "test_a_hostile_row_is_a_fault_of_its_line_and_is_never_trained_on",
    ),
    Regression(
        "uploads are not limited",
        "app.datasets.upload:PayloadTooLarge",
        lambda *_, **__: AssertionError("not limited"),
        "test_an_upload_is_stopped_at_the_limit",
    ),
    Regression(
        "a field of a form takes any memory",
        "app.datasets.form:MAX_FIELD_BYTES",
        1 << 30,
        "test_a_field_of_a_form_is_bounded",
    ),
]
