"""`python -m app --processes 2`: one service on one port, whichever process gets a connection."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import uvicorn
from sqlmodel import Session
from starlette.types import Receive, Scope, Send
from uvicorn.lifespan.off import LifespanOff

from app.http.processes.server import _Server
from app.storage.database import create_database_engine
from app.tables import Deployment, DeploymentStatus
from tests.integration.app.test_server import SECONDS, run, serving, wait_for
from tests.integration.serving.fake_engine import FakeEngine
from trainers.configs import EngineKind, Queue

Service = tuple[psutil.Process, str, str]
COUNTED = 'tunesmith_api_requests_total{method="GET",route="/api/v1/presets",status="200"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data directory of the service."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """Yield a service with two processes: its parent, its address, and the key of an administrator."""
    key = run(folder, "keys", "create", "--name", "me", "--scope", "admin").stdout.strip()
    with serving(folder, "--no-worker", "--processes", "2") as (server, url):
        yield psutil.Process(server.pid), url, key


@pytest.fixture
def engine(service: Service, folder: Path) -> Iterator[FakeEngine]:
    """Yield an engine that serves the model `plain` of the service."""
    fake_engine = FakeEngine()
    row: dict[str, Any] = {
        "base": "hub/base",
        "engine": EngineKind.hf,
        "queue": Queue.cpu,
        "engine_key": "key",
    }
    row |= {"status": DeploymentStatus.ready, "address": fake_engine.url}
    row |= {"lease_expires_at": datetime.now(UTC) + timedelta(days=1)}
    database = create_database_engine(f"sqlite:///{folder}/tunesmith.db")
    with Session(database) as session:
        session.add(Deployment(name="plain", **row))
        session.commit()
    database.dispose()
    yield fake_engine
    fake_engine.close()


def fetch(service: Service, path: str) -> httpx2.Response:
    """Send a request over a connection of its own."""
    _, url, key = service
    return httpx2.get(f"{url}{path}", headers={"Authorization": f"Bearer {key}"}, timeout=SECONDS)


def count_requests(service: Service) -> float:
    lines = fetch(service, "/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(COUNTED)), 0.0)


def find_children(service: Service) -> list[psutil.Process]:
    children: list[psutil.Process] = service[0].children()
    return children


def test_any_process_reports_the_requests_of_all_also_after_one_was_killed(
    service: Service,
) -> None:
    for _ in range(40):
        assert fetch(service, "/api/v1/presets").status_code == 200
    wait_for(lambda: {count_requests(service) for _ in range(10)} == {40.0})
    old = find_children(service)
    os.kill(old[0].pid, signal.SIGKILL)
    wait_for(lambda: len(find_children(service)) == 2 and old[0] not in find_children(service))
    assert {fetch(service, "/healthz").status_code for _ in range(10)} == {200}
    wait_for(lambda: {count_requests(service) for _ in range(10)} == {40.0})


def test_the_processes_share_the_limit_of_a_key(service: Service, engine: FakeEngine) -> None:
    _, url, admin = service
    # One request becomes available again after a minute, which twelve do not take: of three, after 20 s.
    body = {"name": "limited", "scopes": ["inference"], "requests_per_minute": 1}
    headers = {"Authorization": f"Bearer {admin}"}
    created = httpx2.post(f"{url}/api/v1/keys", json=body, headers=headers, timeout=SECONDS)
    limited: dict[str, Any] = {"headers": {"Authorization": f"Bearer {created.json()['key']}"}}
    limited |= {"json": {"model": "plain"}, "timeout": SECONDS}
    chats = [httpx2.post(f"{url}/v1/chat/completions", **limited) for _ in range(12)]
    assert [chat.status_code for chat in chats] == [200] + [429] * 11


def test_a_second_service_does_not_take_connections_of_the_port(service: Service, tmp_path: Path) -> None:
    port = service[1].rpartition(":")[2]
    refused = run(tmp_path, "--no-worker", "--processes", "2", "--port", port)
    assert refused.returncode == 1
    assert f"--port {port}: [Errno 98] Address already in use" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, "--no-worker", "--processes", "2") as (server, _):
        children = psutil.Process(server.pid).children()
        server.send_signal(number)
        assert len(children) == 2
        _, alive = psutil.wait_procs(children, timeout=SECONDS)
        assert not alive


def test_the_garbage_collector_skips_the_objects_of_the_application() -> None:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None: ...

    config = uvicorn.Config(respond, port=0, log_config=None)
    config.load()
    server = _Server(config, threading.Event(), None, with_examples=False)
    server.lifespan = LifespanOff(config)

    async def start_and_stop() -> int:
        await server.startup()
        await server.shutdown()
        return gc.get_freeze_count()

    try:
        assert asyncio.run(start_and_stop()) > 10_000
    finally:
        gc.unfreeze()
