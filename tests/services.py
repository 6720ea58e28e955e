"""Database and broker processes for tests, each private to one session and gone when it ends."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 30


@contextmanager
def postgres_url() -> Iterator[str]:
    """URL of the maintenance database of a PostgreSQL cluster that lives for the block."""
    binaries = _postgres_binaries()
    with tempfile.TemporaryDirectory(prefix="tunesmith-postgres-") as folder:
        data, port = f"{folder}/data", free_port()
        user = _unprivileged_user(folder)
        as_user = ["runuser", "-u", user, "--"] if os.geteuid() == 0 else []
        initdb = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "tunesmith",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=folder)
        options = ["-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        command = [*as_user, binaries / "postgres", "-D", data, *options]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        try:
            _wait_until_open(port)
            _wait_until_ready([*as_user, binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)])
            yield f"postgresql://tunesmith@127.0.0.1:{port}/postgres"
        finally:
            stop = [binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
            subprocess.run([*as_user, *stop], check=True, capture_output=True, cwd=folder)
            server.wait(START_SECONDS)


class Redis:
    """A Redis server with a password, which may be stopped and started again on its port."""

    def __init__(self, folder: str, password: str) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            _missing("redis-server")
        self._port = free_port()
        options = ["--bind", "127.0.0.1", "--dir", folder, "--save", "", "--requirepass", password]
        self._command = [str(binary), "--port", str(self._port), *options]
        self.url = f"redis://:{password}@127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._server = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        _wait_until_open(self._port)

    def stop(self) -> None:
        """End it and all that it held."""
        self._server.terminate()
        self._server.wait(START_SECONDS)


@contextmanager
def redis(password: str) -> Iterator[Redis]:
    """A Redis server that lives for the block."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-redis-") as folder:
        server = Redis(folder, password)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def redis_url(password: str) -> Iterator[str]:
    """URL, with its password, of a Redis server that lives for the block."""
    with redis(password) as server:
        yield server.url


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _postgres_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb)]
    if not found:
        _missing("PostgreSQL's initdb")
    return found[-1].parent


def _unprivileged_user(folder: str) -> str:
    """PostgreSQL refuses to run as root, so root lends the folder to the user that its package made."""
    if os.geteuid() != 0:
        return ""
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return user.pw_name


def _missing(program: str) -> None:
    """In CI a missing program is a fault of its set-up; elsewhere the test is skipped."""
    if os.environ.get("CI"):
        pytest.fail(f"{program} is not installed, and CI must not skip what needs it")
    pytest.skip(f"{program} is not installed")


def _wait_until_open(port: int) -> None:
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
            raise TimeoutError(f"PostgreSQL does not answer after {START_SECONDS} s")
        time.sleep(0.05)
