"""Goal: `python -m app verify` names everything in the store that differs from the rows, and nothing else.

Method: a store with a dataset, a model, a checkpoint and the files of a run, each of which a row names, is
verified as it is, and again after each kind of damage.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.__main__ import main
from app.settings import Settings
from app.storage.database import transaction
from app.storage.opening import get_store
from app.tables import Checkpoint, Model, ModelKind, Run, RunStatus
from tests.integration.app.test_datasets import GOOD, upload
from trainers.runtime.verified_files import _identity, hash_file

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def artifacts(
    settings: Settings, client: TestClient, make_job: Callable[..., list[Run]], tmp_path: Path
) -> Path:
    """Return the folder of a store with one artifact of each kind, all old enough to have a row."""
    upload(client, GOOD)
    client.post("/v1/files", files={"file": b"any bytes"}, data={"purpose": "user_data"})
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w" * 5000)
    (run,) = make_job(RunStatus.succeeded)
    model = get_store().publish_folder(folder, "models/model_1")
    checkpoint = get_store().publish_folder(folder, f"checkpoints/{run.id}/1-00000010")
    get_store().publish_file(folder / "weights", f"runs/{run.id}/1/log.txt")
    stored: dict[str, Any] = {"sha256": model.sha256, "size_bytes": model.size_bytes}
    with transaction() as session:
        session.add(
            Model(id="model_1", name="m", kind=ModelKind.base, base="b", artifact=model.key, **stored)
        )
        session.add(Checkpoint(run_id=run.id, attempt=1, step=10, artifact=checkpoint.key, **stored))
    root = settings.data_dir / "artifacts"
    for path in root.rglob("*"):
        os.utime(path, (0, 0))
    return root


def verify(capsys: pytest.CaptureFixture[str]) -> tuple[str, str | int | None]:
    """Run the command; return what it printed and its exit status, 0 or a message."""
    capsys.readouterr()
    status: str | int | None = 0
    try:
        main(["verify"])
    except SystemExit as exit_:
        status = exit_.code
    return capsys.readouterr().out, status


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_an_intact_store_has_no_faults(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(capsys) == ("Every artifact is as it was published.\n", 0)


@on_sqlite
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda root: (root / "models/model_1/weights").write_bytes(b"v" * 5000), "damaged\tmodels/model_1"),
        (lambda root: next((root / "datasets").iterdir()).write_bytes(b""), "damaged\tdatasets/"),
        (lambda root: next((root / "datasets").iterdir()).unlink(), "missing\tdatasets/"),
        (lambda root: replace_by_folder(next((root / "datasets").iterdir())), "damaged\tdatasets/"),
        (lambda root: next((root / "files").iterdir()).write_bytes(b"other"), "damaged\tfiles/"),
        (lambda root: next(root.glob("checkpoints/*/*/weights")).unlink(), "damaged\tcheckpoints/"),
        (lambda root: (root / "models/model_1").rename(root / "models/model_2"), "missing\tmodels/model_1"),
        (lambda root: (root / "models/model_1").rename(root / "models/model_2"), "unknown\tmodels/model_2"),
        (lambda root: next(root.glob("runs/*")).rename(root / "runs/other"), "unknown\truns/other"),
    ],
)
def test_every_fault_is_listed_with_its_kind_and_key(
    artifacts: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], line: str
) -> None:
    damage(artifacts)
    printed, status = verify(capsys)
    assert line in printed and "damaged, missing or unknown" in str(status)


@on_sqlite
def test_bits_that_rotted_without_a_new_time_are_found(
    settings: Settings, artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = artifacts / "models/model_1/weights"
    sha256 = hash_file(weights)
    weights.write_bytes(b"v" * 5000)
    record = settings.data_dir / "verified-files.log"
    record.write_text(f"{_identity(weights, weights.lstat(), sha256)}\n")
    get_store().fetch_folder("models/model_1", published_hash())
    printed, _ = verify(capsys)
    assert "damaged\tmodels/model_1" in printed


def published_hash() -> str:
    with transaction() as session:
        return session.get_one(Model, "model_1").sha256


@on_sqlite
def test_an_artifact_that_is_being_published_is_not_unknown(
    artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifacts / "models" / "model_new.ab12.part").mkdir()
    assert verify(capsys)[1] == 0


@on_sqlite
def test_the_files_of_a_deleted_dataset_are_not_unknown(
    artifacts: Path, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset,) = client.get("/api/v1/datasets").json()["items"]
    assert client.delete(f"/api/v1/datasets/{dataset['id']}").status_code == 204
    assert verify(capsys)[1] == 0
