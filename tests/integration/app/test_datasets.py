"""Uploads are validated, stored once per content, and never trusted."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.settings import get_settings
from tests.e2e.platform import Platform

ROW = {"question": "What is 2 + 2?", "answer": "It is 4.\n#### 4"}
GOOD = "".join(json.dumps({**ROW, "question": f"What is {n} + 2?"}) + "\n" for n in range(5)).encode()


def upload(client: TestClient, content: bytes, name: str = "rows") -> Any:
    return client.post("/api/v1/datasets", data={"name": name}, files={"file": ("rows.jsonl", content)})


def test_a_valid_file_is_stored_with_its_report(client: TestClient) -> None:
    response = upload(client, GOOD)
    assert response.status_code == 201
    dataset = response.json()
    assert (dataset["format"], dataset["row_count"], dataset["fault_count"]) == ("question_answer", 5, 0)
    assert dataset["trainable"] is True
    assert dataset["report"]["statistics"]["completion_characters"]["max"] == len(ROW["answer"])
    assert client.get(f"/api/v1/datasets/{dataset['id']}/content").content == GOOD


def test_a_changed_file_is_not_read_until_its_content_is_uploaded_again(client: TestClient) -> None:
    path = f"/api/v1/datasets/{upload(client, GOOD).json()['id']}"
    (stored,) = (get_settings().data_dir / "artifacts/datasets").iterdir()
    stored.write_bytes(GOOD.replace(b"It is 4", b"It is 5"))
    for response in (client.get(f"{path}/rows"), client.get(f"{path}/content")):
        assert response.status_code == 500 and response.json()["error"]["code"] == "artifact_corrupt"
        assert stored.name in response.json()["error"]["message"]
    assert upload(client, GOOD).status_code == 200
    assert client.get(f"{path}/content").content == GOOD


def test_uploading_the_same_content_returns_the_same_dataset(client: TestClient) -> None:
    first, second = upload(client, GOOD), upload(client, GOOD, name="other")
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert len(client.get("/api/v1/datasets").json()["items"]) == 1


def test_parts_of_preflights_can_be_left_out_until_somebody_stores_the_same_rows(client: TestClient) -> None:
    of_preflight = upload(client, GOOD, name="preflight-of-mine-test").json()["id"]

    def listed(**query: Any) -> list[str]:
        return [each["id"] for each in client.get("/api/v1/datasets", params=query).json()["items"]]

    assert listed() == listed(name="preflight-of-mine-test", preflights=False) == [of_preflight]
    assert listed(preflights=False) == []
    assert client.get(f"/api/v1/datasets/{of_preflight}").status_code == 200
    again = upload(client, GOOD, name="mine").json()
    assert (again["id"], again["name"]) == (of_preflight, "mine") and listed(preflights=False) == [
        of_preflight
    ]


@pytest.mark.parametrize(
    ("content", "line", "word"),
    [
        (b"", None, "no rows"),
        (gzip.compress(GOOD, mtime=0), None, "gzip"),
        (GOOD.decode().encode("utf-16"), None, "UTF-16"),
        (GOOD.replace(b"\n", b"\r"), 1, "carriage return"),
        (GOOD + b'{"question": "cut o', 6, "truncated"),
        (GOOD + b'{"question": "", "answer": "4"}\n', 6, "empty"),
        (GOOD + b'{"prompt": "a", "completion": "b"}\n', 6, "prompt_completion"),
    ],
    ids=["empty", "gzip", "encoding", "bare CR", "truncated", "empty field", "other format"],
)
def test_a_file_with_a_fault_is_stored_with_a_clear_report_and_refused_for_training(
    client: TestClient, content: bytes, line: int | None, word: str
) -> None:
    dataset = upload(client, content).json()
    assert dataset["trainable"] is False
    (fault,) = dataset["report"]["faults"]
    assert fault["line"] == line
    assert word.lower() in fault["message"].lower()
    job = {"name": "x", "stages": [{"stage": "sft", "base": "a/b", "dataset": dataset["id"]}]}
    refused = client.post("/api/v1/jobs", json=job)
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "dataset_not_ready"


def test_a_line_of_100_mb_is_reported_without_being_held_in_memory(tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    with long.open("wb") as file:
        file.write(GOOD)
        file.write(b'{"question": "' + b"x" * 100_000_000 + b'", "answer": "4"}\n')
    program = f"""
import re
from pathlib import Path
from app.storage import migrate
from app.datasets import service
from app.storage.database import get_engine
migrate.upgrade_database(get_engine())
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
dataset, _ = service.create_dataset(Path({str(long)!r}), "long")
print(dataset.report["faults"][0]["line"], (peak() - before) // 1024)
"""
    environment = {**os.environ, "TUNESMITH_DATA_DIR": str(tmp_path / "data"), "TUNESMITH_DATABASE_URL": ""}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    line, mebibytes = process.stdout.split()
    assert line == "6"
    assert int(mebibytes) < 80


def test_an_upload_takes_constant_memory(tmp_path: Path) -> None:
    """Upload 200 MB to a real server, which writes the form to disk as it arrives."""
    (tmp_path / "no-model").mkdir()
    platform = Platform(tmp_path / "data", tmp_path / "no-model")
    try:
        api = platform.start_api()
        before = peak_mebibytes(api.pid)
        rows = tmp_path / "large.jsonl"
        with rows.open("wb") as file:
            for n in range(200):
                file.write(json.dumps({"prompt": f"{n}", "completion": "y" * 1_000_000}).encode() + b"\n")
        with rows.open("rb") as file:
            response = platform.client.post(
                "/api/v1/datasets", files={"file": ("large.jsonl", file)}, timeout=120
            )
        assert response.json()["row_count"] == 200
        assert peak_mebibytes(api.pid) - before < 120
    finally:
        platform.stop()


def peak_mebibytes(pid: int) -> int:
    """Return the peak of the process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


def test_rows_are_listed_as_stored_and_as_conversations(client: TestClient) -> None:
    dataset = upload(client, GOOD + b'{"question": 5, "answer": "x"}\n').json()
    rows = client.get(f"/api/v1/datasets/{dataset['id']}/rows", params={"after": 4, "limit": 5}).json()[
        "items"
    ]
    assert [row["line"] for row in rows] == [5, 6]
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]
    assert rows[1]["messages"] is None


def test_a_preview_is_a_short_run_of_a_worker(client: TestClient) -> None:
    dataset = upload(client, GOOD).json()
    response = client.post(f"/api/v1/datasets/{dataset['id']}/previews", json={"model": "a/b", "rows": 2})
    assert response.status_code == 202
    (run,) = response.json()["runs"]
    assert (run["stage"], run["config"]["dataset"], run["config"]["rows"]) == ("prepare", dataset["id"], 2)


def test_a_preview_can_choose_a_template(client: TestClient) -> None:
    dataset = upload(client, GOOD).json()
    url = f"/api/v1/datasets/{dataset['id']}/previews"
    (run,) = client.post(url, json={"model": "a/b", "template": "transcript"}).json()["runs"]
    assert run["config"]["template"] == "transcript"
    refused = client.post(url, json={"model": "a/b", "template": "alpaca"})
    assert (refused.status_code, refused.json()["error"]["fields"][0]["field"]) == (422, "template")


def test_an_upload_names_fields_that_no_format_reads(client: TestClient) -> None:
    row = b'{"prompt": "How is it?", "completion": "Fine.", "context": "Berlin in May"}\n'
    report = upload(client, row).json()["report"]
    assert (report["fault_count"], report["warning_counts"]) == (0, {"field_not_read": 1})
    assert (report["warnings"][0]["line"], report["warnings"][0]["field"]) == (1, "context")


def test_a_form_without_a_file_and_a_body_without_a_form_are_refused(client: TestClient) -> None:
    no_file = client.post("/api/v1/datasets", files={"other": ("a", b"b")})
    assert (no_file.status_code, no_file.json()["error"]["fields"][0]["field"]) == (422, "file")
    assert client.post("/api/v1/datasets", json={"a": 1}).status_code == 415


@pytest.mark.parametrize("name", ["n" * 201, "a\x1bb"])
def test_a_name_that_is_not_printable_or_too_long_is_refused(client: TestClient, name: str) -> None:
    response = client.post("/api/v1/datasets", files={"file": ("rows.jsonl", GOOD)}, data={"name": name})
    assert (response.status_code, response.json()["error"]["fields"][0]["field"]) == (422, "name")
    assert client.get("/api/v1/datasets").json()["items"] == []


def test_a_preview_with_an_unknown_model_names_the_field_of_the_request(client: TestClient) -> None:
    dataset = upload(client, GOOD).json()
    response = client.post(f"/api/v1/datasets/{dataset['id']}/previews", json={"model": "nowhere"})
    assert [fault["field"] for fault in response.json()["error"]["fields"]] == ["model"]


def test_an_upload_over_the_limit_is_refused_and_leaves_no_file(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_settings(), "max_upload_bytes", 1000)
    response = upload(client, b"x" * 200_000)
    assert response.status_code == 413
    assert "TUNESMITH_MAX_UPLOAD_BYTES" in response.json()["error"]["hint"]
    assert list((get_settings().data_dir / "uploads").iterdir()) == []


def test_a_404_names_the_unknown_dataset(client: TestClient) -> None:
    response = client.get("/api/v1/datasets/dataset_none")
    assert response.status_code == 404
    assert "dataset_none" in response.json()["error"]["message"]
