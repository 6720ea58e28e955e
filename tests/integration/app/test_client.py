"""The Python client against the service as a process: nothing is lost, doubled or left half.

Method: a service without a worker, whose jobs change by actions alone. It is locked, killed and cut off, and
what the client has seen is compared with what the database contains.
"""

import asyncio
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.client import (
    AccessRefused,
    AsyncClient,
    Client,
    RequestInvalid,
    ServerUnreachable,
    WaitInterrupted,
    WaitTimeout,
)
from app.client.address import find_address, find_login_file, store_login
from tests.integration.app.test_server import environment, serving
from tests.services import free_port
from trainers.configs import PrepareConfig

PREPARE = {"stage": "prepare", "dataset": "rows", "split": {"test": 1}}
ROWS = [{"prompt": f"What is {n} + 1?", "completion": str(n + 1)} for n in range(20_000)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Yield the data directory and the address of a service with the dataset `rows`."""
    folder = tmp_path_factory.mktemp("service")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with serving(folder, "--no-worker") as (_, url):
        with Client(url) as client:
            client.datasets.push(file)
        yield folder, url


@pytest.fixture
def client(service: tuple[Path, str]) -> Iterator[Client]:
    with Client(service[1]) as client:
        yield client


def read_all(folder: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "tunesmith.db")) as database:
        return database.execute(statement).fetchall()


def test_a_dataset_is_pushed_with_progress_and_comes_back_byte_by_byte(
    client: Client, service: Any, tmp_path: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    source = service[0] / "rows.jsonl"
    dataset = client.datasets.push(
        source, name="rows", progress=lambda done, total: seen.append((done, total))
    )
    assert dataset.trainable and dataset.row_count == len(ROWS) and dataset.report is not None
    assert seen[-1] == (source.stat().st_size, source.stat().st_size)
    assert dataset.download(tmp_path).read_bytes() == source.read_bytes()
    assert next(iter(dataset.rows())).row == ROWS[0]


def test_typed_configs_and_mappings_make_the_same_job(client: Client) -> None:
    typed = client.jobs.create(name="typed", stages=[PrepareConfig(dataset="rows", split={"test": 1})])
    plain = client.jobs.create(name="typed", stages=[PREPARE])
    assert typed.spec == plain.spec and typed.id != plain.id
    assert [one.id for one in client.jobs.list(name="typed", limit=1)] == [plain.id, typed.id]


def test_an_invalid_field_is_an_error_with_its_place(client: Client) -> None:
    with pytest.raises(RequestInvalid) as raised:
        client.jobs.create(stages=[{"stage": "prepare", "dataset": "rows", "splt": {}}])
    assert raised.value.status == 422 and raised.value.code == "invalid"
    assert [each["field"] for each in raised.value.fields] == ["stages.0.splt"]


CREATIONS: dict[str, Callable[[Client], str]] = {
    "job WHERE name = 'once'": lambda client: client.jobs.create(name="once", stages=[PREPARE]).id,
    "deployment WHERE name = 'once'": lambda client: client.deployments.create("once", "org/none").id,
    "job WHERE name = 'preflight of once'": lambda client: (
        client.jobs.preflight(
            name="once", stages=[{"stage": "sft", "base": "org/none", "dataset": "rows"}]
        ).job.id
    ),
}


@pytest.mark.parametrize("rows", CREATIONS)
def test_a_request_whose_response_is_lost_creates_one_object(service: tuple[Path, str], rows: str) -> None:
    folder, url = service
    database = sqlite3.connect(folder / "tunesmith.db", check_same_thread=False)
    with closing(database), Client(url, timeout=0.5, retry_seconds=60) as client:
        database.execute("BEGIN IMMEDIATE")
        threading.Timer(1.5, database.rollback).start()
        created = CREATIONS[rows](client)
    assert read_all(folder, f"SELECT id FROM {rows}") == [(created,)]


def test_waiting_ends_in_time_or_by_ctrl_c_and_leaves_the_job(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.jobs.create(name="waited", stages=[PREPARE])
    with pytest.raises(WaitTimeout, match="continues"):
        job.wait(timeout=0.1)
    interrupt = threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    with pytest.raises(WaitInterrupted, match=f"tunesmith logs -f {job.id}"):
        # Once it waits: an earlier signal would end the tests.
        job.wait(on_update=lambda _: None if interrupt.is_alive() else interrupt.start())
    assert job.refresh().status == "queued"


def test_a_stream_continues_over_a_kill_without_a_gap_or_a_repetition(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with killable_service(tmp_path, port) as restart, Client(url, retry_seconds=120) as client:
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
        client.datasets.push(tmp_path / "rows.jsonl")
        job = client.jobs.create(stages=[PREPARE, {**PREPARE, "name": "second"}])
        seen: list[tuple[str, int, str]] = []
        follower = threading.Thread(
            target=lambda: seen.extend((e.run_id, e.seq, e.type) for e in job.stream())
        )
        follower.start()
        actor = client.jobs.get(job.id)
        for _ in range(3):
            actor.pause()
            actor.resume()
        restart()
        for _ in range(3):
            actor.pause()
            actor.resume()
        actor.cancel()
        follower.join(120)
    stored = read_all(tmp_path, "SELECT run_id, seq, type FROM event")
    assert not follower.is_alive() and len(seen) == len(stored) > 12
    assert sorted(seen) == sorted(stored)


@contextmanager
def killable_service(folder: Path, port: int) -> Iterator[Any]:
    """Run the service without a worker; yield what kills it and starts it again."""
    command = [sys.executable, "-m", "app", "--no-worker", "--port", str(port)]
    processes: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        for process in processes[-1:]:
            process.kill()
            process.wait()
        with (folder / "log").open("ab") as log:
            processes.append(
                subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=log, stderr=log)
            )

    restart()
    try:
        yield restart
    finally:
        processes[-1].kill()
        processes[-1].wait()


def test_a_download_that_is_cut_continues_where_it_was(service: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = service
    with (
        CuttingRelay(int(url.rpartition(":")[2]), after_bytes=200_000) as relay,
        Client(f"http://127.0.0.1:{relay.port}") as client,
    ):
        dataset = client.datasets.find("rows")
        assert dataset is not None
        path = dataset.download(tmp_path / "copy.jsonl")
    assert path.read_bytes() == (folder / "rows.jsonl").read_bytes()
    assert relay.n_cuts > 2 and any(b"range: bytes=" in one.lower() for one in relay.requests)
    assert [one.name for one in tmp_path.iterdir()] == ["copy.jsonl"]


class CuttingRelay:
    """A port that relays to another one, and cuts each connection after a number of response bytes."""

    def __init__(self, to_port: int, after_bytes: int) -> None:
        self._to_port, self._after_bytes = to_port, after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.n_cuts = 0

    def __enter__(self) -> "CuttingRelay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        # Either side may have ended the connection before.
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._to_port)) as server:
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            left = self._after_bytes
            while left > 0 and (data := server.recv(min(left, 65536))):
                client.sendall(data)
                left -= len(data)
            self.n_cuts += left == 0
            # A close alone would wait for the other thread.
            client.shutdown(socket.SHUT_RDWR)
            server.shutdown(socket.SHUT_RDWR)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                self.requests.append(data)
                server.sendall(data)
        except OSError:
            return


def test_the_asynchronous_client_has_the_same_methods(service: tuple[Path, str]) -> None:
    async def use() -> tuple[str, list[str], list[str]]:
        async with AsyncClient(service[1]) as client:
            job = await client.jobs.create(name="async", stages=[PREPARE])
            await job.cancel()
            listed = [one.id async for one in client.jobs.list(name="async")]
            return job.status, listed, [event.type async for event in job.stream()]

    status, listed, types = asyncio.run(use())
    assert status == "cancelled" and len(listed) == 1 and set(types) == {"status"}


def test_a_client_without_a_service_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_URL", f"http://127.0.0.1:{free_port()}")
    with Client(retry_seconds=0.1) as client, pytest.raises(ServerUnreachable, match="tunesmith up"):
        client.readiness()


def test_a_stored_key_is_sent_to_its_own_address_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("TUNESMITH_URL", "TUNESMITH_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    store_login("https://a.example/api/v1/", "ts_secret")
    assert find_login_file().stat().st_mode & 0o777 == 0o600
    assert (find_address().url, find_address().key) == ("https://a.example", "ts_secret")
    assert find_address("https://b.example").key is None and "ts_secret" not in repr(find_address())


# The last test: from then on, the others would need a key.
def test_a_key_is_required_once_one_exists(client: Client, service: tuple[Path, str]) -> None:
    admin = client.request("POST", "/keys", json={"name": "me", "scopes": ["admin"], "lock_service": True})
    with Client(service[1], key=admin["key"]) as owner:
        created = owner.request("POST", "/keys", json={"name": "you", "scopes": ["read"]})
    with Client(service[1], key=created["key"]) as reader:
        assert reader.whoami().scopes == ["read"]
        with pytest.raises(AccessRefused, match="scope write"):
            reader.jobs.create(stages=[PREPARE])
    with (
        Client(service[1], key="ts_unknown") as stranger,
        pytest.raises(AccessRefused, match="tunesmith login"),
    ):
        stranger.whoami()
