"""Requests while the database or a disk is unavailable: 503 with `Retry-After` within seconds, everywhere."""

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from httpx2 import Response
from sqlalchemy import Connection, text
from starlette.testclient import TestClient

from app.settings import Settings
from app.storage import database, sqlite
from app.storage.database import create_database_engine, get_engine
from tests.application import configured_app
from tests.integration.app.conftest import clear_caches
from tests.services import require_root

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
DEPLOYMENT = {"name": "maths", "model": "org/model"}
CHAT = {"model": "maths", "messages": [{"role": "user", "content": "hi"}]}
FIRST_KEY = {"name": "n" * 100, "scopes": ["admin"], "lock_service": True}
UPLOAD = {"file": ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n')}


def assert_unavailable(response: Response, code: str = "database_unavailable") -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (503, code), response.text
    assert int(response.headers["retry-after"]) > 0


@pytest.fixture
def quick_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "POOL_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.2)


@pytest.fixture
def damaged(client: TestClient, settings: Settings) -> TestClient:
    """Return a client of a service whose database file is damaged."""
    get_engine().dispose()
    path = settings.data_dir / "tunesmith.db"
    for name in (path, path.with_name("tunesmith.db-wal"), path.with_name("tunesmith.db-shm")):
        name.unlink(missing_ok=True)
    path.write_bytes(os.urandom(8192))
    # A thread of the service may have opened the intact file since; its connection returns to another pool.
    get_engine().dispose()
    return client


@on_sqlite
def test_every_route_reports_a_database_that_cannot_be_read(damaged: TestClient) -> None:
    routes = [
        (method, prefix + path)
        for prefix in ("", "/v1")
        for path, operations in damaged.get(f"{prefix}/openapi.json").json()["paths"].items()
        for method in operations
        if path not in ("/healthz", "/readyz")
    ]
    assert len(routes) > 140
    for method, path in routes:
        response = damaged.request(method, path.replace("{", "").replace("}", ""), json=CHAT)
        assert response.status_code == 503, (method, path, response.text)
        assert_unavailable(response)


@on_sqlite
def test_a_locked_database_is_reported_in_seconds_to_many_clients(
    quick_timeouts: None, client: TestClient, settings: Settings
) -> None:
    holder = sqlite3.connect(settings.data_dir / "tunesmith.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    started_at = time.monotonic()
    with ThreadPoolExecutor(40) as pool:
        responses = list(pool.map(lambda _: client.post("/api/v1/deployments", json=DEPLOYMENT), range(40)))
    holder.execute("ROLLBACK")
    holder.close()
    for response in responses:
        assert_unavailable(response)
    assert time.monotonic() - started_at < 60


@on_sqlite
def test_a_read_is_served_while_the_database_is_locked_for_writing(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above all, the time of a key's last use is not worth a failed request."""
    key = client.post("/api/v1/keys", json=FIRST_KEY).json()["key"]
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.2)
    holder = sqlite3.connect(settings.data_dir / "tunesmith.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    response = client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {key}"})
    holder.execute("ROLLBACK")
    holder.close()
    assert response.status_code == 200, response.text


@on_postgres
def test_a_postgresql_that_ends_its_sessions_is_reported(client: TestClient, postgres: str) -> None:
    stopping = threading.Event()

    def terminate() -> None:
        killer = create_database_engine(postgres)
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        while not stopping.is_set():
            with killer.connect() as connection:
                connection.execute(text(f"{statement} AND datname = current_database()"))
        killer.dispose()

    thread = threading.Thread(target=terminate)
    thread.start()
    statuses: list[int] = []
    deadline = time.monotonic() + 60
    # Which of the requests lose their connection is chance: on a busy host, the first hundred may lose none.
    while len(statuses) < 100 or (503 not in statuses and time.monotonic() < deadline):
        statuses.append(client.get("/api/v1/jobs").status_code)
    stopping.set()
    thread.join()
    assert set(statuses) <= {200, 503} and 503 in statuses


def take_connections(postgres: str, others: list[Connection]) -> None:
    """Close those of the service that are idle, and take all that the server then has."""
    get_engine().dispose()
    with pytest.raises(Exception, match="connection"):
        while True:
            others.append(create_database_engine(postgres).connect())


@on_postgres
def test_a_postgresql_without_free_connections_is_reported(client: TestClient, postgres: str) -> None:
    others: list[Connection] = []
    try:
        take_connections(postgres, others)
        # A request gets a connection that a thread of the service has opened, and the place of one that was
        # closed, which the server frees a moment later.
        while (response := client.get("/api/v1/jobs")).status_code == 200:
            take_connections(postgres, others)
        while (chat := client.post("/v1/chat/completions", json=CHAT)).status_code != 503:
            take_connections(postgres, others)
        assert_unavailable(response)
        # A chat that got a connection for its key has none for the routes, and the key stays known.
        is_key_known = "list of deployments" in chat.text
        assert_unavailable(chat, "engine_unavailable" if is_key_known else "database_unavailable")
    finally:
        for other in others:
            other.close()
            other.engine.dispose()


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Yield a client of a service whose data directory has no space left."""
    require_root("mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(folder))
    clear_caches()
    try:
        with TestClient(configured_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
            with pytest.raises(OSError), (folder / "ballast").open("wb") as ballast:
                while True:
                    ballast.write(bytes(4096))
                    ballast.flush()
            yield client
    finally:
        get_engine().dispose()
        clear_caches()
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_reported_and_reads_are_served(full_disk: TestClient) -> None:
    response = full_disk.post("/api/v1/keys", json=FIRST_KEY)
    while response.status_code == 201:  # The last pages of the file had room.
        key = {"Authorization": f"Bearer {response.json()['key']}"}
        response = full_disk.post("/api/v1/keys", json=FIRST_KEY, headers=key)
    assert_unavailable(response, "disk_full")
    assert_unavailable(full_disk.post("/api/v1/datasets", files=UPLOAD), "disk_full")
    assert full_disk.get("/readyz").status_code == 503
    assert full_disk.get("/healthz").status_code == 200
