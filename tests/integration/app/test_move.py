"""The move of the embedded database into PostgreSQL.

Goal: all rows and artifacts arrive as they were, or nothing does. Method: fill an embedded installation over
HTTP, move it into an empty PostgreSQL database and a new folder, and read everything again; then try what
must be refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from starlette.testclient import TestClient

from app.backup import tables
from app.backup.layout import BackupFailed
from app.backup.move import MoveResult, digest_rows, move_installation
from app.retention.collector import INSTALLATION_KEY
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.database import create_database_engine, get_engine, transaction
from app.storage.opening import get_store
from app.tables import Event, EventType, Job, Run, RunStatus
from tests.application import configured_app
from tests.integration.app.conftest import clear_caches
from trainers.configs import Queue, StageKind

ROWS = '{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "대답"}]}\n'
# Of each kind that the two databases store differently.
CONFIG: dict[str, Any] = {"zeta": 1e-7, "a": [None, True, 2**53], "ä 한": {"b": 1, "a": 2.5}}
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def target(postgres: str) -> Iterator[str]:
    """Yield the URL of a database without tables."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE moved")
        yield postgres.replace("/postgres", "/moved")
        connection.execute("DROP DATABASE moved WITH (FORCE)")


@pytest.fixture
def filled(settings: Settings) -> None:
    """Fill the installation with an artifact, and rows whose values the databases store differently.

    The service has ended then: the connections of its threads would keep the database from being moved.
    """
    with TestClient(configured_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        file = {"file": ("rows.jsonl", ROWS)}
        uploaded = client.post("/api/v1/datasets", data={"name": "rows"}, files=file)
    assert uploaded.status_code == 201, uploaded.text
    with transaction() as session:
        job = Job(name="Job ß")
        session.add(job)
        session.flush()
        fields: dict[str, Any] = {"queue": Queue.cpu, "stage": StageKind.sft, "status": RunStatus.queued}
        for name in ("B", "a", "_"):
            run = Run(job_id=job.id, position=ord(name), name=name, config=CONFIG, **fields)
            session.add(run)
            session.flush()
            session.add(Event(run_id=run.id, seq=1, attempt=1, type=EventType.status, data=CONFIG))


def move(url: str, store: ArtifactStore | None = None) -> MoveResult:
    get_engine().dispose()
    return move_installation(get_engine(), get_store(), url, store, lambda progress: None)


def count_all(connection: Connection) -> int:
    return sum(tables.count_rows(connection, table) for table in tables.reflect_tables(connection))


def test_all_rows_and_files_arrive_as_they_were(
    filled: None, settings: Settings, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store = ArtifactStore(f"file://{tmp_path / 'new'}", tmp_path / "cache")
    with get_engine().connect() as connection:
        before = {t.name: digest_rows(connection, t, t) for t in tables.reflect_tables(connection)}
    moved = move(target, new_store)
    engine = create_database_engine(target)
    with engine.connect() as connection:
        after = {t.name: digest_rows(connection, t, t) for t in tables.reflect_tables(connection)}
        config = connection.scalar(text("SELECT config FROM run WHERE name = '_'"))
    engine.dispose()
    assert before == after
    assert moved.n_rows == sum(count for count, _ in after.values()) > 7
    assert config == CONFIG and moved.n_files >= 1
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", target)
    monkeypatch.setenv("TUNESMITH_ARTIFACTS_URL", f"file://{tmp_path / 'new'}")
    clear_caches()
    assert get_store().list_folder("datasets") is not None
    get_engine().dispose()


def test_a_failure_in_the_middle_leaves_the_target_empty(filled: None, target: str) -> None:
    with transaction() as session:
        # PostgreSQL stores no text with this character.
        session.execute(text("UPDATE run SET name = 'a' || char(0) || 'b' WHERE name = 'a'"))
    with pytest.raises(Exception, match=r"NUL|0x00|null"):
        move(target)
    engine = create_database_engine(target)
    with engine.connect() as connection:
        assert count_all(connection) == 0
    engine.dispose()


def test_a_target_with_rows_is_refused(filled: None, target: str) -> None:
    move(target)
    with pytest.raises(BackupFailed, match="not empty"):
        move(target)


def test_a_service_that_runs_is_refused(filled: None, target: str) -> None:
    service = create_database_engine(str(get_engine().url))
    with service.connect() as connection:
        connection.execute(text("SELECT count(*) FROM run")).all()
    # The pool of the service keeps its connection open.
    with pytest.raises(BackupFailed, match=r"in use\. Stop the service"):
        move(target)
    service.dispose()
    assert move(target).n_rows > 0


def test_a_folder_without_an_installation_is_refused(filled: None, target: str, tmp_path: Path) -> None:
    source = create_database_engine(f"sqlite:///{tmp_path / 'absent.db'}")
    with pytest.raises(BackupFailed, match=r"no database .*absent\.db\. Set TUNESMITH_DATA_DIR"):
        move_installation(source, get_store(), target, None, lambda _: None)
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////tmp/other.db", "postgres://u:hunter2@127.0.0.1/x", "mysql://u:hunter2@127.0.0.1/x",
        "hunter2", "postgresql://u:p@ss:hunter2@127.0.0.1/x",
    ],
)  # fmt: skip
def test_only_postgresql_is_a_target_and_no_message_contains_a_password(filled: None, url: str) -> None:
    with pytest.raises(BackupFailed, match="postgresql://") as raised:
        move(url)
    assert "hunter2" not in str(raised.value) and "%40" in str(raised.value)


def test_the_store_of_another_installation_is_refused_and_other_content_is_replaced(
    filled: None, target: str, tmp_path: Path
) -> None:
    new_store = ArtifactStore(f"file://{tmp_path / 'new'}", tmp_path / "cache")
    new_store.publish_bytes(b'{"installation_id": "other"}', INSTALLATION_KEY)
    with pytest.raises(BackupFailed, match="another installation"):
        move(target, new_store)
    assert new_store.list_folder("datasets") == []
    new_store.delete(INSTALLATION_KEY)
    with get_engine().connect() as connection:
        key, size_bytes = connection.execute(text("SELECT artifact, size_bytes FROM dataset")).one()
    new_store.publish_bytes(b"x" * size_bytes, key)
    move(target, new_store)
    assert new_store.open(key).read() == get_store().open(key).read()


def test_artifacts_that_are_in_a_bucket_are_not_moved(filled: None, target: str, tmp_path: Path) -> None:
    bucket = ArtifactStore("memory://bucket", tmp_path / "cache")
    with pytest.raises(BackupFailed, match="leave --artifacts out"):
        move_installation(get_engine(), bucket, target, get_store(), lambda progress: None)
