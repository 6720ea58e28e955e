"""A Tunesmith installation with production timings, on databases that sync their commits."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from app.settings import Settings, get_settings
from app.storage.database import get_engine
from tests.e2e.platform import ROOT, Platform
from tests.services import _postgres_binaries, _unprivileged_user, free_port
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

TIMINGS = ("lease_seconds", "heartbeat_seconds", "sweep_seconds", "renotify_seconds", "stop_grace_seconds")


@contextmanager
def durable_postgres() -> Iterator[str]:
    """Run a PostgreSQL cluster that syncs its commits, unlike that of the tests, and yield its URL."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-postgres-") as folder:
        user, port = _unprivileged_user(folder), free_port()
        as_user = ["runuser", "-u", user, "--"] if user else []

        def run(program: str, *arguments: str) -> None:
            command = [*as_user, str(_postgres_binaries() / program), "-D", f"{folder}/data", *arguments]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

        run("initdb", "-U", "tunesmith", "--auth=trust", "-E", "UTF8")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://tunesmith@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "fast", "stop")


def new_database(postgres: str, name: str) -> str:
    """Create a database in the cluster and return its URL."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return postgres.replace("/postgres", f"/{name}")


@contextmanager
def installation(
    folder: Path, database_url: str = "", broker_url: str = "", root: Path = ROOT, processes: int = 1
) -> Iterator[Platform]:
    """Run an installation with its API and the dataset `train`; this process can use its database.

    Empty URLs select the embedded defaults; `root` is the checkout whose code runs.
    """
    timings = {f"TUNESMITH_{name.upper()}": str(Settings.model_fields[name].default) for name in TIMINGS}
    urls = {"TUNESMITH_DATABASE_URL": database_url, "TUNESMITH_BROKER_URL": broker_url}
    # An older version does not know the setting.
    count = {"TUNESMITH_PROCESSES": str(processes)} if processes > 1 else {}
    platform = Platform(folder, folder / "starter", **timings, **urls, **count)
    platform.root = root
    try:
        assert platform.start(["-m", "app", "migrate"], "migrate").wait(60) == 0
        platform.start_api()
        platform.upload("train", [dict(row) for row in generate_problems(160, ProblemSplit.train, seed=1)])
        with _shared(platform):
            yield platform
    finally:
        platform.stop()


@contextmanager
def _shared(platform: Platform) -> Iterator[None]:
    """Make this process and its children use the installation's database."""
    ours = {name: value for name, value in platform.environment.items() if name.startswith("TUNESMITH_")}
    os.environ |= ours
    get_settings.cache_clear()
    get_engine.cache_clear()
    try:
        yield
    finally:
        get_engine().dispose()
        for name in ours:
            del os.environ[name]
