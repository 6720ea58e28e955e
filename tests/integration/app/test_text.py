"""Text that no database can store is refused everywhere, with the field that has it."""

import json
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Event, EventType, Run, RunStatus

BODIES = {
    "deployment_ids.0": ("/api/v1/routes/use", {"deployment_ids": ["TEXT"]}),
    "name": ("/api/v1/keys", {"name": "TEXT", "scopes": ["read"]}),
    "labels.TEXT": ("/api/v1/jobs", {"name": "job", "labels": {"TEXT": "1"}, "stages": []}),
    "stages.0.dataset": (
        "/api/v1/jobs/dry-run",
        {"name": "a", "stages": [{"stage": "sft", "dataset": "TEXT"}]},
    ),
}


@pytest.mark.parametrize("text", ["\\ud800", "a\\uDFFFb", "\\u0000"])
@pytest.mark.parametrize("field", BODIES)
def test_a_body_with_text_that_cannot_be_stored_is_refused(client: TestClient, field: str, text: str) -> None:
    path, body = BODIES[field]
    content = json.dumps(body).replace("TEXT", text)
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid"), response.text
    assert "NUL" in response.json()["error"]["message"]
    assert response.json()["error"]["fields"][0]["field"].startswith(field.partition("TEXT")[0])


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u2028", "\x9b"])
def test_a_name_that_would_reorder_the_text_beside_it_is_refused(client: TestClient, character: str) -> None:
    name = f"a{character}b"
    stage = {"stage": "sft", "base": "org/base", "dataset": "rows"}
    responses = [
        client.post("/api/v1/jobs", json={"name": name, "stages": [stage]}),
        client.post("/api/v1/keys", json={"name": name, "scopes": ["read"]}),
        client.post("/api/v1/datasets", data={"name": name}, files={"file": ("rows.jsonl", b"{}")}),
    ]
    for response in responses:
        [field] = response.json()["error"]["fields"]
        assert (response.status_code, field["field"]) == (422, "name") and "U+202E" in field["message"]


def test_a_surrogate_pair_is_one_character_and_accepted(client: TestClient) -> None:
    content = b'{"name": "\\ud83d\\ude00", "scopes": ["admin"], "lock_service": true}'
    response = client.post("/api/v1/keys", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["name"]) == (201, "😀")


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/jobs?name=a%00b",
        "/api/v1/jobs?label=a:%00",
        "/api/v1/datasets?name=%00",
        "/api/v1/deployments?name=%00",
        "/api/v1/jobs/%00",
        "/api/v1/runs/%00/events",
        "/api/v1/datasets/%00/rows",
        "/api/v1/aliases/%00",
        "/api/v1/presets/%00",
    ],
)
def test_a_parameter_with_text_that_cannot_be_stored_is_refused(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 422


def test_an_event_with_an_unpaired_surrogate_can_be_read(
    client: TestClient, settings: Settings, make_job: Callable[..., list[Run]]
) -> None:
    """Programs write events, and their text is not ours to refuse."""
    (run,) = make_job(RunStatus.running, attempt=1)
    with transaction() as session:
        data = {"level": "info", "message": "a\ud800b"}
        session.add(Event(run_id=run.id, seq=1, attempt=1, type=EventType.log, data=data))
    (event,) = client.get(f"/api/v1/runs/{run.id}/events").json()["items"]
    assert event["data"]["message"] == "a?b"
    with read_session() as session:
        assert session.get_one(Run, run.id).status is RunStatus.running
