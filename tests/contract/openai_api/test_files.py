"""OpenAI's Files API, through its official client."""

import json
from datetime import timedelta
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from sqlalchemy import event, update
from starlette.testclient import TestClient

from app.retention.records import delete_records
from app.settings import get_settings
from app.storage.database import get_engine, read_session, transaction
from app.tables import Batch, Dataset, File, Upload
from app.tables.base import utc_now
from serving.http.limits import MAX_BODY_BYTES

ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": str(n + 1)}]}
    for n in range(3)
]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def upload(openai: OpenAI, content: bytes = CONTENT, **fields: Any) -> Any:
    return openai.files.create(**{"file": ("rows.jsonl", content), "purpose": "fine-tune"} | fields)


def test_a_file_for_training_is_a_dataset(openai: OpenAI) -> None:
    file = upload(openai)
    assert (file.id[:5], file.object, file.filename, file.purpose) == (
        "file-",
        "file",
        "rows.jsonl",
        "fine-tune",
    )
    assert (file.bytes, file.status, file.status_details) == (len(CONTENT), "processed", None)
    assert openai.files.wait_for_processing(file.id) == file == openai.files.retrieve(file.id)
    assert openai.files.content(file.id).read() == CONTENT
    assert file.dataset.startswith("dataset_")


def test_the_faults_of_a_file_are_in_its_status_with_their_lines(openai: OpenAI) -> None:
    file = upload(openai, CONTENT + b'{"messages": [{"role": "bananas", "content": "x"}]}\n')
    assert file.status == "error"
    assert file.status_details.startswith("line 4: ")
    assert "bananas" in file.status_details


def test_files_for_other_purposes_keep_their_bytes(openai: OpenAI) -> None:
    content = b"\x00\xff any bytes"
    file = upload(openai, content, purpose="user_data")
    assert openai.files.content(file.id).read() == content
    assert (file.status, file.expires_at) == ("processed", None)


def test_a_list_of_files_is_read_to_its_end_in_either_order(openai: OpenAI) -> None:
    ids = [upload(openai, CONTENT, purpose=purpose).id for purpose in ("batch", "fine-tune", "batch")]
    assert [file.id for file in openai.files.list(limit=1)] == ids[::-1]
    assert [file.id for file in openai.files.list(limit=2, order="asc")] == ids
    assert [file.id for file in openai.files.list(purpose="batch")] == [ids[2], ids[0]]


def test_a_file_expires(openai: OpenAI) -> None:
    file = upload(openai, purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    assert upload(openai, purpose="batch").expires_at is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_expires_does_so_to_the_second_after_its_creation(openai: OpenAI) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    file = upload(openai, purpose="batch", expires_after=expiry).id
    batch = openai.batches.create(
        input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
    ).id
    fields: Any = {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    begun = openai.uploads.create(**fields).id
    with read_session() as session:
        rows = [session.get_one(*each) for each in ((File, file), (Batch, batch), (Upload, begun))]
    assert [(row.expires_at - row.created_at).total_seconds() / 3600 for row in rows] == [1, 24, 1]


def test_a_deleted_file_is_gone_with_the_dataset_that_it_owns(openai: OpenAI, client: TestClient) -> None:
    first, second = upload(openai), upload(openai)
    assert first.dataset == second.dataset
    deleted = openai.files.delete(first.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (first.id, True, "file")
    assert openai.files.content(second.id).read() == CONTENT
    openai.files.delete(second.id)
    with pytest.raises(NotFoundError) as caught:
        openai.files.content(second.id)
    assert caught.value.code == "file_not_found"
    assert client.get(f"/api/v1/datasets/{first.dataset}").status_code == 404


def test_a_deleted_file_leaves_a_dataset_that_was_uploaded_by_itself(
    openai: OpenAI, client: TestClient
) -> None:
    dataset = client.post("/api/v1/datasets", files={"file": ("rows.jsonl", CONTENT)}).json()
    file = upload(openai)
    openai.files.delete(file.id)
    assert file.dataset == dataset["id"]
    assert client.get(f"/api/v1/datasets/{file.dataset}").status_code == 200


def test_a_dataset_that_was_later_uploaded_by_itself_stays_as_well(
    openai: OpenAI, client: TestClient
) -> None:
    file = upload(openai)
    client.post("/api/v1/datasets", files={"file": ("rows.jsonl", CONTENT)})
    openai.files.delete(file.id)
    assert client.get(f"/api/v1/datasets/{file.dataset}").status_code == 200


def test_the_record_of_a_deleted_dataset_stays_as_long_as_a_file_names_it(
    openai: OpenAI, client: TestClient
) -> None:
    file = upload(openai)
    client.delete(f"/api/v1/datasets/{file.dataset}")
    with transaction() as session:
        session.execute(update(Dataset).values(deleted_at=utc_now() - timedelta(days=1000)))
    assert list(delete_records(get_settings(), dry_run=False)) == []
    assert openai.files.retrieve(file.id).status == "error"
    openai.files.delete(file.id)
    assert [one.name for one in delete_records(get_settings(), dry_run=False)] == [file.dataset]


def test_a_list_of_files_reads_their_datasets_in_one_statement(openai: OpenAI) -> None:
    for number in range(5):
        upload(openai, CONTENT + json.dumps(ROWS[0] | {"number": number}).encode() + b"\n")
    statements: list[str] = []
    event.listen(get_engine(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    assert len(openai.files.list().data) == 5
    assert len([text for text in statements if "FROM dataset" in text]) == 1


@pytest.mark.parametrize("name", ["a" * 600, "a\0b"])
def test_a_file_name_that_cannot_be_stored_is_refused(client: TestClient, name: str) -> None:
    part = f'--x\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\na\r\n'
    purpose = '--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = client.post("/v1/files", content=part + purpose, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": "bananas"}, "purpose", "invalid"),
        ({"purpose": "batch_output"}, "purpose", "invalid"),
        ({"expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after.seconds", "invalid"),
        ({"extra_body": {"colour": "red"}}, "colour", "invalid"),
    ],
)
def test_an_invalid_parameter_is_named(openai: OpenAI, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        upload(openai, **fields)
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        param,
        code,
        "invalid_request_error",
    )


def test_an_unknown_query_parameter_is_refused_by_name(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        openai.files.list(extra_query={"colour": "red"})
    assert (caught.value.param, caught.value.code) == ("colour", "unknown_parameter")


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/api/v1/jobs"])
def test_a_body_over_the_limit_is_refused_in_the_shape_of_its_api(client: TestClient, path: str) -> None:
    headers = {"content-type": "application/json"}
    response = client.post(path, content=b" " * (MAX_BODY_BYTES + 1), headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "too_large")
    assert f"larger than {MAX_BODY_BYTES} bytes" in error["message"]
    assert ("type" in error) is path.startswith("/v1/")


def test_an_upload_over_the_limit_names_its_field(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_settings(), "max_upload_bytes", 1000)
    with pytest.raises(APIStatusError) as caught:
        upload(openai, b"x" * 200_000)
    assert (caught.value.status_code, caught.value.param) == (413, "file")


def test_a_body_that_is_not_json_has_no_parameter(client: TestClient) -> None:
    response = client.post("/v1/evals", content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, None)


def test_the_methods_of_a_path_are_all_named(client: TestClient) -> None:
    response = client.put("/v1/files")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST, HEAD")
    assert "/v1/docs" in response.json()["error"]["message"]


def test_an_unknown_path_is_a_404_in_openais_shape(openai: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        openai.get("/bananas", cast_to=object)
    assert caught.value.code == "unknown_url"
    assert caught.value.request_id is not None
