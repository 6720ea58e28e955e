"""Goal: CSV, Parquet and JSON arrays become datasets of JSON Lines. Method: uploads over HTTP."""

import io
import json
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from starlette.testclient import TestClient

ROWS = [{"prompt": f"Translate: 안녕 {n}", "completion": f"Hello {n}"} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS)

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def upload(client: TestClient, name: str, content: bytes, **fields: str) -> Any:
    return client.post("/api/v1/datasets", data=fields, files={"file": (name, content)})


def parquet_file() -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "fields", "source"),
    [
        ("mine.csv", CSV.encode(), {}, "csv"),
        ("mine.csv", CSV.encode("cp949"), {"encoding": "cp949", "delimiter": ""}, "csv"),
        ("mine", CSV.replace(",", ";").encode(), {"delimiter": "semicolon"}, "csv"),
        ("mine.json", json.dumps(ROWS, ensure_ascii=False, indent=2).encode(), {}, "json_array"),
        ("mine.parquet", parquet_file(), {}, "parquet"),
        ("mine.csv", LINES, {}, None),
    ],
)
def test_a_table_or_an_array_is_stored_as_json_lines(
    client: TestClient, name: str, content: bytes, fields: dict[str, str], source: str | None
) -> None:
    response = upload(client, name, content, **fields)
    assert response.status_code == 201, response.text
    dataset = response.json()
    assert (dataset["name"], dataset["format"], dataset["trainable"]) == ("mine", "prompt_completion", True)
    assert dataset["report"]["converted_from"] == source
    stored = client.get(f"/api/v1/datasets/{dataset['id']}/content").content
    assert [json.loads(line) for line in stored.splitlines()] == ROWS
    rows = client.get(f"/api/v1/datasets/{dataset['id']}/rows").json()["items"]
    assert [(row["line"], row["row"]) for row in rows] == list(enumerate(ROWS, 1))
    # The rows of every format are the same dataset.
    assert upload(client, "lines.jsonl", stored).json()["id"] == dataset["id"]


def test_a_table_with_a_fault_is_stored_as_it_is_and_refused_for_training(client: TestClient) -> None:
    content = (CSV + "only one cell\n").encode()
    dataset = upload(client, "mine.csv", content).json()
    assert (dataset["trainable"], dataset["row_count"], dataset["fault_count"]) == (False, 4, 1)
    (fault,) = dataset["report"]["faults"]
    assert (fault["line"], fault["code"]) == (4, "wrong_columns")
    assert fault["message"].startswith("The record in line 5 has 1 cell, but the header has 2")
    assert client.get(f"/api/v1/datasets/{dataset['id']}/content").content == content
    job = {"name": "job", "stages": [{"stage": "sft", "base": "org/base", "dataset": dataset["id"]}]}
    assert client.post("/api/v1/jobs", json=job).json()["error"]["code"] == "dataset_not_ready"


def test_a_file_that_is_sent_again_has_the_faults_of_its_new_name_and_options(client: TestClient) -> None:
    content = (CSV + "only one cell\n").encode()
    first = upload(client, "mine.txt", content).json()
    assert first["report"]["faults"][0]["code"] == "invalid_json"
    for name, code in {"mine.csv": "wrong_columns", "mine.txt": "invalid_json"}.items():
        again = upload(client, name, content)
        assert (again.status_code, again.json()["id"]) == (200, first["id"])
        assert {fault["code"] for fault in again.json()["report"]["faults"]} == {code}
        assert client.get(f"/api/v1/datasets/{first['id']}").json() == again.json()


@pytest.mark.parametrize("field", ["delimiter", "encoding"])
def test_an_unknown_option_is_refused_with_those_that_exist(client: TestClient, field: str) -> None:
    response = upload(client, "mine.csv", CSV.encode(), **{field: "zip"})
    assert response.status_code == 422
    assert response.json()["error"]["fields"][0]["field"] == field
    assert {"delimiter": "semicolon", "encoding": "cp949"}[field] in response.json()["error"]["message"]
