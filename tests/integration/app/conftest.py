"""Fixtures: a migrated database of each kind, and a client of the API on it."""

import itertools
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, update
from sqlmodel import SQLModel, col
from starlette.testclient import TestClient

from app.scheduling import incidents, queue
from app.settings import Settings, get_settings
from app.storage import database as database
from app.storage import migrate, opening
from app.storage.database import create_database_engine, database_now, transaction
from app.tables import Dataset, Job, Run, RunNeed, RunStatus, Worker
from tests.application import configured_app
from tests.services import postgres_url
from trainers.configs import Queue, StageKind
from trainers.data.formats import RowFormat


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Yield the URL of a migrated database, which all tests share to save the time of the migrations."""
    with postgres_url() as url:
        _migrate(url)
        yield url


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated database file, which tests copy."""
    folder = tmp_path_factory.mktemp("sqlite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATA_DIR", str(folder))
        clear_caches()
        _migrate(f"sqlite:///{folder / 'tunesmith.db'}")
    clear_caches()
    return folder / "tunesmith.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a migrated database without rows."""
    if request.param == "sqlite":
        path = tmp_path / "tunesmith.db"
        shutil.copy(request.getfixturevalue("sqlite"), path)
        yield f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("postgres")
        yield url
        _empty(url)


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Yield the process's settings, with a data directory for the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", database_url)
    clear_caches()
    yield get_settings()
    clear_caches()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """Yield a client on this machine, which a service without keys accepts."""
    with TestClient(configured_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        yield client


@pytest.fixture
def make_dataset(settings: Settings) -> Callable[..., Dataset]:
    """Return a function that creates a dataset of 100 valid rows."""

    def make(name: str, **values: Any) -> Dataset:
        defaults: dict[str, Any] = {
            "sha256": secrets.token_hex(32),
            "artifact": "datasets/x",
            "size_bytes": 1,
            "row_count": 100,
            "format": RowFormat.messages,
        }
        dataset = Dataset(name=name, **(defaults | values))
        with transaction() as session:
            session.add(dataset)
        return dataset

    return make


@pytest.fixture
def make_job(settings: Settings) -> Callable[..., list[Run]]:
    """Return a function that creates a job with a run of each given status."""

    def make(*statuses: RunStatus, **values: Any) -> list[Run]:
        with transaction() as session:
            job = Job(name=values.pop("name", "job"))
            session.add(job)
            session.flush()
            runs = [
                Run(
                    job_id=job.id,
                    position=position,
                    name=f"stage{position}",
                    status=status,
                    **{"queue": Queue.cpu, "stage": StageKind.sft, "config": {}, **values},
                )
                for position, status in enumerate(statuses)
            ]
            session.add_all(runs)
            session.flush()
            session.add_all(RunNeed(run_id=b.id, needed_id=a.id) for a, b in itertools.pairwise(runs))
            for before, run in itertools.pairwise(runs):
                run.unmet_needs = int(before.status is not RunStatus.succeeded)
        return runs

    return make


@pytest.fixture
def make_worker(settings: Settings) -> Callable[..., Worker]:
    """Return a function that creates a live worker."""

    def make(**values: Any) -> Worker:
        defaults: dict[str, Any] = {
            "name": "here",
            "host": "h",
            "pid": 1,
            "queues": [Queue.cpu],
            "stages": list(StageKind),
        }
        worker = Worker(**(defaults | values))
        with transaction() as session:
            session.add(worker)
            session.flush()
            session.execute(
                update(Worker).where(col(Worker.id) == worker.id).values(last_seen_at=database_now())
            )
        return worker

    return make


def clear_caches() -> None:
    """Clear the caches, so that the next call reads the environment again."""
    assert queue.get_notifier().wait(120), "a notification of this test would be sent in the next one"
    if (engine := database.get_engine.cache_clear()) is not None:
        _close_connections(engine)
    caches = (get_settings, queue.get_celery, queue.get_notify_incident)
    for cached in (*caches, opening.get_store):
        cached.cache_clear()
    incidents._OPEN.clear()


def _close_connections(engine: Engine) -> None:
    """Close all connections, after the threads of the service that still use one.

    A connection that is in use would return to a pool that nobody closes any more.
    """
    deadline = time.monotonic() + 120
    while engine.pool.checkedout():  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, "a connection of this test is still in use"
        time.sleep(0.01)
    engine.dispose()


def _empty(url: str) -> None:
    """Delete all rows in one request: a statement per table would take five times as long."""
    tables = reversed(SQLModel.metadata.sorted_tables)
    with psycopg.connect(url) as connection:
        connection.execute("".join(f'DELETE FROM "{table.name}";' for table in tables))


def _migrate(url: str) -> None:
    engine = create_database_engine(url)
    migrate.upgrade_database(engine)
    engine.dispose()
