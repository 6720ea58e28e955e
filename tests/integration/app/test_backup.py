"""Backup and restoration: an empty installation gets everything, and a damaged or misplaced one nothing.

Method: fill an installation over HTTP and in the store, back it up, point the settings at a new database and
a new store, restore, and read everything again over HTTP.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import select
from starlette.testclient import TestClient

from app.backup.backup import create_backup
from app.backup.layout import BackupFailed, Snapshot, list_snapshots
from app.backup.restore import Restoration, restore_backup
from app.main import create_app
from app.retention.collector import StorageLease, collect, hold_storage_lease
from app.settings import Settings, get_settings
from app.storage.database import create_database_engine, get_engine, read_session, transaction
from app.storage.opening import get_store
from app.storage.remote.protocol import PublishedArtifact
from app.storage.verify import verify_store
from app.tables import (
    Checkpoint,
    CloudState,
    Deployment,
    DeploymentStatus,
    Event,
    EventType,
    Model,
    ModelKind,
    Run,
    RunStatus,
    StorageState,
    StoredResponse,
)
from tests.application import configured_app
from tests.integration.app.conftest import clear_caches
from trainers.configs import EngineKind, Queue
from trainers.configs.clouds import CloudName

ROW = '{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}\n'
Restore = Callable[[], Restoration]
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def backup(directory: Path, *, keep: int = 7, lease: StorageLease | None = None) -> Snapshot:
    with hold_storage_lease() as held:
        assert held is not None
        return create_backup(get_engine(), get_store(), lease or held, directory, keep, lambda progress: None)


@pytest.fixture
def service() -> Iterator[ExitStack]:
    """Yield what ends the service that was backed up: its threads must not use the restored database."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def client(settings: Settings, service: ExitStack) -> TestClient:
    """Return a client of the service, on this machine, until the service ends."""
    client = TestClient(configured_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000))
    return service.enter_context(client)


@pytest.fixture
def target_url(settings: Settings, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a new database of the same kind."""
    url = settings.database_url.get_secret_value()
    if url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'restored' / 'tunesmith.db'}"
        return
    server = create_database_engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS restored"))
        connection.execute(text("CREATE DATABASE restored"))
    yield f"{url.rpartition('/')[0]}/restored"
    get_engine().dispose()
    clear_caches()
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE restored WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def restore(target_url: str, service: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restore:
    """Return a function that ends the service and restores into a new one, named by the settings then."""

    def call(name: str | None = None) -> Restoration:
        service.close()
        monkeypatch.setenv("TUNESMITH_DATA_DIR", str(tmp_path / "restored"))
        monkeypatch.setenv("TUNESMITH_DATABASE_URL", target_url)
        get_engine().dispose()
        clear_caches()
        return restore_backup(get_engine(), get_store(), tmp_path / "backup", name, lambda progress: None)

    return call


def fill(client: TestClient, make_worker: Any, tmp_path: Path) -> dict[str, str]:
    """Create one of everything, with a run and a deployment in progress; return the ids."""
    dataset = client.post("/api/v1/datasets", files={"file": ("rows.jsonl", ROW)}).json()
    stage = {"stage": "sft", "base": "org/base", "dataset": "rows", "max_steps": 1}
    job = client.post("/api/v1/jobs", json={"name": "j", "labels": {"a": "b"}, "stages": [stage]}).json()
    folder = tmp_path / "written"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"state")
    (tmp_path / "log.txt").write_text("a log")
    run_id, store = job["runs"][0]["id"], get_store()
    store.publish_file(tmp_path / "log.txt", f"runs/{run_id}/1/log.txt")
    model, checkpoint = (
        store.publish_folder(folder, "models/m"),
        store.publish_folder(folder, f"checkpoints/{run_id}/1-5"),
    )
    worker = make_worker()
    later = datetime.now(UTC) + timedelta(hours=1)
    with transaction() as session:
        run = session.get_one(Run, run_id)
        run.status, run.attempt, run.worker_id, run.lease_expires_at = RunStatus.running, 1, worker.id, later
        run.log_artifact = f"runs/{run_id}/1/log.txt"
        session.add(Checkpoint(run_id=run_id, attempt=1, step=5, **columns(checkpoint)))
        files = columns(model)
        session.add(
            Model(
                id="model_parent", name="p", kind=ModelKind.base, base="b", dataset_id=dataset["id"], **files
            )
        )
        session.flush()
        session.add(
            Model(
                id="model_child", name="c", kind=ModelKind.base, base="b", parent_id="model_parent", **files
            )
        )
        deployment = Deployment(
            name="chat", base="b", engine=EngineKind.hf, queue=Queue.cpu, status=DeploymentStatus.ready,
            worker_id=worker.id, lease_expires_at=later, ready_at=later,
        )  # fmt: skip
        session.add(deployment)
    client.put("/api/v1/aliases/prod", json={"targets": [{"deployment": "chat"}]})
    key = client.post("/api/v1/keys", json={"name": "a", "scopes": ["admin"], "lock_service": True}).json()[
        "key"
    ]
    client.headers["Authorization"] = f"Bearer {key}"
    return {
        "dataset": dataset["id"],
        "job": job["id"],
        "run": run_id,
        "deployment": deployment.id,
        "key": key,
    }


def columns(published: PublishedArtifact) -> dict[str, Any]:
    return {"artifact": published.key, "sha256": published.sha256, "size_bytes": published.size_bytes}


def read_rows(table: type[Any]) -> list[dict[str, Any]]:
    with read_session() as session:
        return sorted((row.model_dump() for row in session.exec(select(table)).all()), key=str)


def test_a_restored_installation_serves_everything_and_continues_its_runs(
    client: TestClient, make_worker: Any, tmp_path: Path, restore: Restore
) -> None:
    ids = fill(client, make_worker, tmp_path)
    file = client.post("/v1/files", files={"file": b"any bytes"}, data={"purpose": "user_data"}).json()
    sizes = {"bytes": 2, "filename": "a.bin", "mime_type": "text/plain", "purpose": "user_data"}
    upload = client.post("/v1/uploads", json=sizes).json()["id"]
    part = client.post(f"/v1/uploads/{upload}/parts", files={"data": b"ab"}).json()["id"]
    with transaction() as session:
        times: dict[str, Any] = {
            "created_at": datetime.now(UTC),
            "expires_at": datetime.now(UTC) + timedelta(days=1),
        }
        texts: dict[str, Any] = {"input_items": "[]", "response": "{}", "size_bytes": 4}
        session.add(StoredResponse(id="r", key_id="", model="m", deployment_id="d", **texts, **times))
    kept = {table: read_rows(table) for table in (Model, Checkpoint, StoredResponse)}
    backup(tmp_path / "backup")
    restored = restore()
    assert (restored.n_requeued, restored.snapshot.unreadable) == (1, [])
    assert {table: read_rows(table) for table in kept} == kept
    headers = {"Authorization": f"Bearer {ids['key']}"}
    with TestClient(create_app(), base_url="http://127.0.0.1", headers=headers) as new:
        assert new.get(f"/api/v1/datasets/{ids['dataset']}/content").text == ROW
        assert new.get(f"/v1/files/{file['id']}/content").text == "any bytes"
        completed = new.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [part]})
        assert completed.json()["status"] == "completed"
        run = new.get(f"/api/v1/runs/{ids['run']}").json()
        assert (run["status"], run["attempt"], run["failure_count"], run["worker_id"]) == (
            "queued",
            1,
            0,
            None,
        )
        assert new.get(f"/api/v1/runs/{ids['run']}/files/log.txt").text == "a log"
        assert new.get("/api/v1/jobs", params={"label": "a:b"}).json()["items"][0]["id"] == ids["job"]
        assert new.get(f"/api/v1/deployments/{ids['deployment']}").json()["status"] == "queued"
        assert new.get("/api/v1/aliases/prod").json()["targets"][0]["deployment"] == "chat"
        assert new.get("/api/v1/models/model_child").json()["parent"]["id"] == "model_parent"
    events = [row["data"].get("reason") for row in read_rows(Event) if row["type"] is EventType.status]
    assert "the installation was restored from a backup" in events
    assert list(verify_store(get_store(), lambda progress: None)) == []
    with hold_storage_lease() as lease:
        assert lease is not None
        # The part of the completed upload.
        assert [count.count for count in collect(get_settings(), get_store(), lease).removed] == [1]


def test_a_second_backup_copies_only_what_is_new_and_older_snapshots_go(
    client: TestClient, make_worker: Any, tmp_path: Path
) -> None:
    ids = fill(client, make_worker, tmp_path)
    first = backup(tmp_path / "backup")
    inodes = list_inodes(tmp_path / "backup")
    with transaction() as session:
        session.get_one(Run, ids["run"]).status = RunStatus.failed
    set_names_of_snapshots_back(tmp_path / "backup")
    client.post("/api/v1/datasets", files={"file": ("more.jsonl", ROW * 2)})
    second = backup(tmp_path / "backup", keep=1)
    assert second.n_files == first.n_files + 1
    assert inodes.items() <= list_inodes(tmp_path / "backup").items()
    set_names_of_snapshots_back(tmp_path / "backup")
    client.delete(f"/api/v1/jobs/{ids['job']}")
    backup(tmp_path / "backup", keep=1)
    assert len(list_snapshots(tmp_path / "backup")) == 1
    assert not any("checkpoints" in path for path in list_inodes(tmp_path / "backup"))


def list_inodes(directory: Path) -> dict[str, int]:
    artifacts = directory / "artifacts"
    return {str(p.relative_to(artifacts)): p.stat().st_ino for p in artifacts.rglob("*") if p.is_file()}


def set_names_of_snapshots_back(directory: Path) -> None:
    """Rename the snapshots, whose names are the second of their creation."""
    for number, folder in enumerate(list_snapshots(directory)):
        folder.rename(folder.with_name(f"20000101T{number:06d}Z"))


def test_an_installation_with_rows_or_files_is_never_overwritten(
    client: TestClient, make_worker: Any, tmp_path: Path, restore: Restore
) -> None:
    fill(client, make_worker, tmp_path)
    backup(tmp_path / "backup")
    with pytest.raises(BackupFailed, match="database is not empty"):
        restore_backup(get_engine(), get_store(), tmp_path / "backup", None, lambda progress: None)
    foreign = tmp_path / "restored" / "artifacts" / "models" / "other"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("other")
    with pytest.raises(BackupFailed, match="store is not empty: it contains models/other"):
        restore()
    foreign.unlink()
    restore()
    with pytest.raises(BackupFailed, match="database is not empty"):
        restore()


@on_sqlite
@pytest.mark.parametrize("damaged", ["artifacts/models/m/optimizer.pt", "snapshots/*/tables/model.jsonl"])
def test_a_damaged_backup_is_refused_before_anything_is_written(
    client: TestClient, make_worker: Any, tmp_path: Path, restore: Restore, damaged: str
) -> None:
    fill(client, make_worker, tmp_path)
    backup(tmp_path / "backup")
    (path,) = (tmp_path / "backup").glob(damaged)
    path.write_bytes(b"wrong")
    with pytest.raises(BackupFailed, match="missing or damaged"):
        restore()
    assert not (tmp_path / "restored" / "artifacts").exists()


@on_sqlite
def test_a_restoration_that_stopped_halfway_is_repeated(
    client: TestClient, make_worker: Any, tmp_path: Path, restore: Restore
) -> None:
    ids = fill(client, make_worker, tmp_path)
    backup(tmp_path / "backup")
    shutil.copytree(tmp_path / "backup" / "artifacts" / "models", tmp_path / "restored/artifacts/models")
    restore()
    assert [row["id"] for row in read_rows(Run)] == [ids["run"]]


class DeletingLease(StorageLease):
    """A lease at whose first renewal a running job deletes its checkpoint."""

    def renew(self) -> None:
        with transaction() as session:
            for checkpoint in session.exec(select(Checkpoint)).all():
                session.delete(checkpoint)
                get_store().delete(checkpoint.artifact)


def test_a_checkpoint_that_is_deleted_during_the_backup_is_not_part_of_it(
    client: TestClient, make_worker: Any, tmp_path: Path, restore: Restore
) -> None:
    fill(client, make_worker, tmp_path)
    snapshot = backup(tmp_path / "backup", lease=DeletingLease("test"))
    assert (snapshot.tables["checkpoint"].rows, snapshot.unreadable) == (0, [])
    restore()
    assert read_rows(Checkpoint) == []
    assert list(verify_store(get_store(), lambda progress: None)) == []


@on_sqlite
def test_a_backup_reports_what_the_store_had_lost(
    client: TestClient, make_worker: Any, tmp_path: Path
) -> None:
    fill(client, make_worker, tmp_path)
    (Path(get_store().root) / "models" / "m" / "optimizer.pt").write_bytes(b"wrong")
    assert backup(tmp_path / "backup").unreadable == ["models/m"]


@on_sqlite
def test_no_garbage_is_collected_during_a_backup(
    client: TestClient, make_worker: Any, tmp_path: Path
) -> None:
    fill(client, make_worker, tmp_path)
    with hold_storage_lease() as held:
        assert held is not None
        with hold_storage_lease() as second:
            assert second is None
    assert read_rows(StorageState)[0]["holder"] is None


@on_sqlite
def test_a_restoration_holds_the_hosts_of_clouds_until_a_person_takes_them_over(
    client: TestClient, restore: Restore, tmp_path: Path
) -> None:
    with transaction() as session:
        session.add(CloudState(name=CloudName.aws, worker_id="worker_1", lease_expires_at=datetime.now(UTC)))
    backup(tmp_path / "backup")
    assert restore().held_clouds == [CloudName.aws]
    with read_session() as session:
        state = session.scalars(select(CloudState)).one()
    assert (state.worker_id, state.lease_expires_at, state.held_at is None) == (None, None, False)
