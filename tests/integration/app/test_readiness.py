"""Readiness: each dependency is broken for real, and `/readyz` says which one and how."""

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from starlette.testclient import TestClient

from app.http import health
from app.http.health import hide_locations
from app.scheduling.incidents import Incident
from app.scheduling.queue import get_celery
from app.settings import Settings
from app.storage.database import get_engine
from app.tables import Worker

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
# Too long for DNS: no server is asked, whose response could take longer than the check.
NOWHERE = ".".join(["nowhere"] * 40)
DEPENDENCIES = ("database", "store", "broker", "workers", "hosts", "background")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a check take its time, also where other work makes it slow."""
    monkeypatch.setattr(health, "LIMIT_SECONDS", 60.0)


def read_states(client: TestClient) -> tuple[int, dict[str, str]]:
    """Return the status, and the dependencies that are not ok."""
    response = client.get("/readyz")
    body: dict[str, Any] = response.json()
    assert body["ready"] is (response.status_code == 200)
    return response.status_code, {name: body[name] for name in DEPENDENCIES if body[name] != "ok"}


def test_a_service_is_ready_when_all_is_well(client: TestClient, make_worker: Callable[..., Worker]) -> None:
    make_worker()
    assert read_states(client) == (200, {})


@on_sqlite
def test_a_database_at_another_revision_is_not_ready(client: TestClient) -> None:
    with get_engine().begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    status, states = read_states(client)
    assert status == 503 and "python -m app migrate" in states["database"]


@on_sqlite
def test_a_store_that_cannot_be_written_is_not_ready(client: TestClient, settings: Settings) -> None:
    shutil.rmtree(settings.data_dir / "artifacts", ignore_errors=True)
    (settings.data_dir / "artifacts").write_text("a file in place of the folder")
    status, states = read_states(client)
    assert status == 503 and states["store"].endswith(("File exists: …", "Not a directory: …"))


@on_sqlite
@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", f"redis://{NOWHERE}/0"])
def test_an_unreachable_broker_is_reported_but_the_service_is_ready(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(settings, "broker_url", SecretStr(url))
    status, states = read_states(client)
    assert status == 200 and "Error" in states["broker"]


@on_sqlite
def test_a_broker_that_hangs_is_reported_in_time_and_holds_no_request(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        monkeypatch.setattr(settings, "broker_url", SecretStr(url))
        monkeypatch.setattr(health, "LIMIT_SECONDS", 0.5)
        # The connection itself does not give up, so that a request which waits for it takes this long.
        get_celery().conf.broker_transport_options = {"socket_timeout": 90}
        started_at = time.monotonic()
        _, states = read_states(client)
        assert states["broker"] == "no response within 0.5 s"
        assert time.monotonic() - started_at < 60
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (
            "FileExistsError: [Errno 17] File exists: '/srv/data/queue'",
            "FileExistsError: [Errno 17] File exists: …",
        ),
        ('connection to server at "10.0.0.7", port 5432 failed', "connection to server at … failed"),
        ("Error 111 connecting to redis.internal:6379. Refused", "Error 111 connecting to …. Refused"),
        ('FATAL: role "tunesmith" does not exist', "FATAL: role … does not exist"),
        ("OSError: /srv/data/health/x does not contain it", "OSError: … does not contain it"),
        ("You can't write: it isn't a master", "You can't write: it isn't a master"),
        ("start one with `python -m workers --queue …`", "start one with `python -m workers --queue …`"),
    ],
)
def test_readiness_names_no_address_path_or_user(text: str, public: str) -> None:
    assert hide_locations(text) == public


@on_sqlite
def test_the_problems_of_workers_are_reported(client: TestClient, make_worker: Callable[..., Worker]) -> None:
    make_worker(name="mac", problems=["broker: 3 failures, the last one: ReadOnlyError"])
    assert read_states(client) == (200, {"workers": "mac: broker: 3 failures, the last one: ReadOnlyError"})
    (worker,) = client.get("/api/v1/workers").json()["items"]
    assert worker["problems"] == ["broker: 3 failures, the last one: ReadOnlyError"]


@on_sqlite
def test_missing_workers_and_failing_threads_are_reported(client: TestClient, tmp_path: Path) -> None:
    incident = Incident("sweeper")
    incident.record(ValueError("broken"))
    status, states = read_states(client)
    incident.resolve()
    assert (status, set(states)) == (200, {"workers", "background"})
    assert states["background"] == "sweeper: 1 failure, the last one: ValueError: broken"
