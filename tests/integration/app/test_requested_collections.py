"""Collections that a person requests over HTTP: a dry run first, one at a time, and a result that stays."""

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlmodel import col
from starlette.testclient import TestClient

from app.retention import collector
from app.retention.collector import INSTALLATION_KEY, hold_storage_lease
from app.settings import Settings
from app.storage.database import database_now, read_session, transaction
from app.storage.opening import get_store
from app.tables import StorageState
from tests.integration.app.stored_artifacts import (
    Make,
    add_checkpoint,
    add_model,
    finish,
    run_collection,
    stored_keys,
)

URL = "/api/v1/storage"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def request(client: TestClient, **body: Any) -> Any:
    """Request a collection, which has ended when the response is here, and return its result."""
    started = client.post(f"{URL}/collections", json=body)
    assert started.status_code == 202 and started.json()["ended_at"] is None
    return client.get(URL).json()["requested"]


def test_a_dry_run_shows_what_a_collection_then_removes(
    client: TestClient, settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    run = finish(make_job)
    add_checkpoint(tmp_path, run, 5)
    model = add_model(tmp_path, run)
    client.delete(f"/api/v1/models/{model.id}")
    before = stored_keys()
    shown = request(client)
    assert shown["dry_run"] and stored_keys() == before and model.artifact in before
    assert model.artifact in [removal["name"] for removal in shown["removals"]]
    done = request(client, dry_run=False)
    assert done["report"]["removed"] == shown["report"]["removed"]
    assert model.artifact not in stored_keys()
    assert client.get(URL).json()["last_collection"] == done["report"]


@on_sqlite
def test_only_one_process_collects_at_a_time(client: TestClient) -> None:
    with hold_storage_lease() as lease:
        assert lease is not None and client.get(URL).json()["collecting"]
        refused = client.post(f"{URL}/collections", json={})
    assert refused.status_code == 409 and "collecting" in refused.json()["error"]["hint"]
    assert not client.get(URL).json()["collecting"]
    assert request(client)["error"] is None


@on_sqlite
def test_a_live_process_keeps_its_lease_and_a_killed_one_loses_it_within_a_minute(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "HEARTBEAT_SECONDS", 0.02)
    with hold_storage_lease():
        with transaction() as session:
            session.execute(update(StorageState).values(lease_expires_at=database_now(-1)))
        deadline = time.monotonic() + 10
        while not client.get(URL).json()["collecting"]:
            assert time.monotonic() < deadline, "the lease was not renewed"
        with read_session() as session:
            is_short = col(StorageState.lease_expires_at) <= database_now(60)
            assert session.scalar(select(col(StorageState.id)).where(is_short)) is not None
        refused = client.post(f"{URL}/collections", json={}).json()["error"]
    assert "killed, this takes at most 60 seconds" in refused["hint"]


@on_sqlite
def test_a_request_that_cannot_be_recorded_leaves_no_lease(client: TestClient) -> None:
    assert request(client)["error"] is None
    with transaction() as session:
        refuse = "BEFORE UPDATE OF requested ON storage_state BEGIN SELECT RAISE(ABORT, 'no'); END"
        session.execute(text(f"CREATE TRIGGER refuse {refuse}"))
    assert client.post(f"{URL}/collections", json={}).status_code == 500
    assert not client.get(URL).json()["collecting"]


@on_sqlite
def test_a_store_of_another_installation_is_left_alone_and_named(
    client: TestClient, settings: Settings
) -> None:
    get_store().publish_bytes(b'{"installation_id": "installation_other"}', INSTALLATION_KEY)
    result = request(client, dry_run=False)
    assert "installation_other" in result["error"] and result["report"] is None
    assert not client.get(URL).json()["collecting"]
