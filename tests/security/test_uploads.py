"""An upload writes nothing outside its own folder, leaves nothing behind, and is bounded while it arrives."""

import gzip
from pathlib import Path

import pytest
from starlette.testclient import TestClient

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
]
