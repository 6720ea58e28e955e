"""PostgreSQL, Redis and MLflow for tests: private processes that end with the test session."""

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest

# Only a server that hangs takes as long; a busy machine starts one in seconds.
START_SECONDS = 90
REQUEST_SECONDS = 60
# Below the ephemeral range, from which the kernel assigns ports to clients. No more processes test at once.
FIRST_PORT, PORTS_PER_PROCESS, MAX_PROCESSES = 20_000, 1_200, 10
REQUIRED = "REQUIRE_PROGRAMS" in os.environ


class PostgresServer:
    """A PostgreSQL cluster without a password, which a test can stop and start again with its data."""

    def __init__(self, folder: str, *options: str) -> None:
        self._binaries = _postgres_binaries()
        self._folder = folder
        self._data, self._port = f"{folder}/data", free_port()
        user = _unprivileged_user(folder)
        self._as_user: list[str | Path] = ["runuser", "-u", user, "--"] if os.geteuid() == 0 else []
        self.url = f"postgresql://tunesmith@127.0.0.1:{self._port}/postgres"
        initdb: list[str | Path] = [
            self._binaries / "initdb",
            "-D",
            self._data,
            "-U",
            "tunesmith",
            "--auth=trust",
            "--no-sync",
        ]
        subprocess.run([*self._as_user, *initdb, "-E", "UTF8"], check=True, capture_output=True, cwd=folder)
        listen = ["-p", str(self._port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        postgres: list[str | Path] = [self._binaries / "postgres", "-D", self._data, *listen, *options]
        self._command: list[str | Path] = [*self._as_user, *postgres]
        self.start()

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self._server = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder
        )
        wait_until_open(self._port)
        is_ready: list[str | Path] = [
            self._binaries / "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self._port),
        ]
        _wait_until_ready([*self._as_user, *is_ready])

    def stop(self) -> None:
        """Stop the server at once, as a crash does: its next start replays the log."""
        stop: list[str | Path] = [self._binaries / "pg_ctl", "-D", self._data, "-m", "immediate", "stop"]
        subprocess.run([*self._as_user, *stop], check=True, capture_output=True, cwd=self._folder)
        self._server.wait(START_SECONDS)


@contextmanager
def postgres(*options: str) -> Iterator[PostgresServer]:
    """Start a PostgreSQL cluster for the block, with further options of `postgres`."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-postgres-") as folder:
        server = PostgresServer(folder, *options)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def postgres_url() -> Iterator[str]:
    """Start a PostgreSQL cluster for the block; the URL is that of its maintenance database."""
    with postgres() as server:
        yield server.url


class RedisServer:
    """A Redis server with a password, which a test can stop and start again on its port."""

    def __init__(self, folder: str, password: str, *addresses: str) -> None:
        binary = find_program("redis-server")
        self._port = free_port()
        options = [
            "--bind",
            "127.0.0.1",
            *addresses,
            "--dir",
            folder,
            "--save",
            "",
            "--requirepass",
            password,
        ]
        self._command = [binary, "--port", str(self._port), *options]
        self.url = f"redis://:{password}@127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        """Start the server, empty, and wait until it accepts connections."""
        self._server = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until_open(self._port)

    def kill(self) -> None:
        """Kill the server, also one that a script blocks; its data is lost."""
        self._server.kill()
        self._server.wait(START_SECONDS)

    def stop(self) -> None:
        """Stop the server; its data is lost."""
        self._server.terminate()
        self._server.wait(START_SECONDS)


@contextmanager
def redis(password: str, *addresses: str) -> Iterator[RedisServer]:
    """Start a Redis server for the block, which also listens on these addresses."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-redis-") as folder:
        server = RedisServer(folder, password, *addresses)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def redis_url(password: str) -> Iterator[str]:
    """Start a Redis server for the block; the URL contains its password."""
    with redis(password) as server:
        yield server.url


class MlflowServer:
    """An MLflow server on SQLite, which a test can stop and start again with its data."""

    def __init__(self, folder: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = Path(folder) / "server.log"
        store = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}"]
        server = ["-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *store]
        self._command = [sys.executable, *server]
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, unless it is running, and wait until it responds."""
        if self._server is not None:
            return
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            # In a new session, so that its worker process can be killed with it.
            self._server = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            assert self._server.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill the server; its data is kept."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait(START_SECONDS)
        self._server = None

    def run_of(self, run_id: str) -> Any:
        """Return the one MLflow run with our run id as a tag."""
        (experiment,) = self.post("experiments/search", max_results=1, filter="name = 'tunesmith'")[
            "experiments"
        ]
        query = {"filter": f"tags.`tunesmith.run_id` = '{run_id}'"}
        response = self.post("runs/search", experiment_ids=[experiment["experiment_id"]], **query)
        (run,) = response["runs"]
        return run

    def history(self, run: Any, key: str) -> list[tuple[int, float]]:
        """Return the steps and values of a metric, by step."""
        query = {"run_id": run["info"]["run_id"], "metric_key": key}
        response = httpx2.get(
            f"{self.url}/api/2.0/mlflow/metrics/get-history", params=query, timeout=REQUEST_SECONDS
        )
        points = response.raise_for_status().json().get("metrics", [])
        return sorted((int(point["step"]), point["value"]) for point in points)

    def post(self, path: str, **body: Any) -> Any:
        """Return the JSON of a POST that must succeed."""
        response = httpx2.post(f"{self.url}/api/2.0/mlflow/{path}", json=body, timeout=REQUEST_SECONDS)
        return response.raise_for_status().json()

    def _is_up(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health").status_code == 200
        except httpx2.TransportError:
            return False


@contextmanager
def mlflow() -> Iterator[MlflowServer]:
    """Start an MLflow server for the block."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-mlflow-") as folder:
        server = MlflowServer(folder)
        try:
            yield server
        finally:
            server.stop()


class Relay:
    """A port that refuses connections until it is opened, and then relays them to another port."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._to_port = to_port
        self._listener: socket.socket | None = None

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()

    def open(self) -> None:
        """Listen, and relay every connection."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._to_port))
                except OSError:
                    client.close()
                    continue
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=_copy, args=ends, daemon=True).start()


def _copy(source: socket.socket, destination: socket.socket) -> None:
    with contextlib.suppress(OSError), source, destination:
        while data := source.recv(1 << 16):
            destination.sendall(data)
        destination.shutdown(socket.SHUT_RDWR)


# Outside of xdist any of them: other test runs may be in progress. `random` would return the same numbers in
# all of them, because training seeds it.
_PROCESS = (
    int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{secrets.randbelow(MAX_PROCESSES)}")[2:]) % MAX_PROCESSES
)
_PORT_NUMBERS = itertools.count(secrets.randbelow(PORTS_PER_PROCESS))


def free_port() -> int:
    """Return a free port, which nothing else of this test run takes before the caller's program listens.

    Each of the parallel test processes has ports of its own, and takes one after the other.
    """
    while True:
        port = FIRST_PORT + _PROCESS * PORTS_PER_PROCESS + next(_PORT_NUMBERS) % PORTS_PER_PROCESS
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _postgres_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb)]
    if not found:
        fail_or_skip("PostgreSQL's initdb is not installed")
    return found[-1].parent


def _unprivileged_user(folder: str) -> str:
    """Give the folder to the user `postgres` if this is root, as which PostgreSQL refuses to run."""
    if os.geteuid() != 0:
        return ""
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return user.pw_name


def find_program(name: str) -> str:
    """Return the path of a program, also of one for root; fail or skip the test without it."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        fail_or_skip(f"{name} is not installed")
    return str(found)


def require_root(reason: str) -> None:
    """Fail or skip the test for other users than root."""
    if os.geteuid() != 0:
        fail_or_skip(f"only root can {reason}")


def fail_or_skip(reason: str) -> NoReturn:
    """Fail where `.ci/run` has installed what tests need; skip the test elsewhere."""
    if REQUIRED:
        pytest.fail(f"{reason}, and REQUIRE_PROGRAMS allows no test to be skipped for that")
    pytest.skip(reason)


def wait_until_open(port: int) -> None:
    """Wait until a port of loopback accepts connections."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after {START_SECONDS} s")


def _wait_until_ready(command: list[str | Path]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(command, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"PostgreSQL is not ready after {START_SECONDS} s")
        time.sleep(0.05)
