"""Goal: a name in a job leads to verified files under an allowed root, or of the hub, and nowhere else.

Method: the worker that prepares a launch starts in a folder whose subfolders look like ids of the hub, and
downloads from a hub that the test controls.
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file
from sqlalchemy import update
from sqlmodel import select

from app.runs.attempt_outcome import HUB_RETRY_SECONDS
from app.storage.database import database_now, read_session, transaction
from app.tables import Checkpoint, Job, Run, RunStatus
from tests.fake_hub import FakeHub, run_hub
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import PrepareConfig, Queue, StageKind
from trainers.configs.sources import HubSource, Source
from trainers.runtime.error_codes import ErrorCode
from workers.hosts.devices import NO_DEVICES
from workers.hosts.environments import program_environment
from workers.hosts.worker import WorkerContext
from workers.inputs.datasets import fetch_source
from workers.inputs.errors import LaunchError, LaunchStopped
from workers.inputs.models import ResolvedModel, fetch_model
from workers.runs.launch import prepare_launch

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Submit = Callable[..., str]
WEIGHTS: dict[str, Any] = {"weight": np.zeros(8000, np.float32)}
MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": save(WEIGHTS), "w.bin": b"pickle"}
LORA = {"peft_type": "LORA", "r": 4}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with run_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield hub


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the worker's working directory, outside all roots, with folders that look like ids."""
    folder = tmp_path / "cwd"
    for name in ("notroot/secretdata", "text", "notroot/secretmodel"):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text('{"secret": 1}\n')
        (folder / name / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.chdir(folder)
    return folder


def fetch(worker: WorkerContext, reference: str) -> ResolvedModel:
    return fetch_model(None, reference, worker.settings)


def refusal(work: Callable[[], object]) -> LaunchError:
    with pytest.raises(LaunchError) as caught:
        work()
    return caught.value


def write_adapter(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(LORA | {"base_model_name_or_path": base}))
    (folder / "tokenizer_config.json").write_text("{}")
    save_file(WEIGHTS, folder / "adapter_model.safetensors")
    return folder


def source(worker: WorkerContext, name: str) -> Source:
    return fetch_source(HubSource(name=name), worker.settings, lambda: False)


@pytest.mark.parametrize("name", ["notroot/secretdata", "text"])
def test_a_dataset_of_the_hub_is_never_a_folder_in_the_working_directory(
    worker: WorkerContext, hub: FakeHub, trap: Path, name: str
) -> None:
    assert refusal(lambda: source(worker, name)).code is ErrorCode.dataset_not_found
    commit = hub.add_dataset(name, {"train.jsonl": b'{"public": 1}\n'})
    found = source(worker, name)
    assert isinstance(found, HubSource) and found.revision == commit
    assert (Path(found.name) / "train.jsonl").read_text() == '{"public": 1}\n'


def test_a_model_of_the_hub_is_never_a_folder_in_the_working_directory(
    worker: WorkerContext, hub: FakeHub, trap: Path
) -> None:
    assert refusal(lambda: fetch(worker, "notroot/secretmodel")).code is ErrorCode.model_not_found


def test_a_model_of_the_hub_is_pinned_to_its_commit_and_free_of_pickles(
    worker: WorkerContext, hub: FakeHub
) -> None:
    commit = hub.add_model("org/name", MODEL)
    model = fetch(worker, "org/name")
    assert model.origin == f"org/name@{commit}"
    assert {path.name for path in Path(model.base).iterdir()} == {"config.json", "model.safetensors"}
    hub.add_model("org/name", MODEL | {"config.json": b"{}"})
    hub.status = 503
    assert fetch(worker, model.origin) == model, "an adapter keeps the base that it was trained on"


def test_a_hub_that_is_out_of_reach_is_the_error_of_a_run_that_waits_for_it(
    worker: WorkerContext, hub: FakeHub
) -> None:
    hub.status = 503
    config = {"stage": "import", "model": "org/name"}
    with transaction() as session:
        job = Job(name="job")
        session.add(job)
        session.flush()
        fields: dict[str, Any] = {
            "stage": StageKind("import"),
            "queue": Queue.cpu,
            "position": 0,
            "name": "r",
        }
        session.add(Run(job_id=job.id, config=config, **fields))
    for seconds in HUB_RETRY_SECONDS:
        before = read_database_time()
        assert execute_next(worker)
        after = read_database_time()
        with read_session() as session:
            run = session.exec(select(Run)).one()
        assert run.claimable_at is not None
        assert before <= run.claimable_at - timedelta(seconds=seconds) <= after
        assert run.status is RunStatus.queued and run.error is not None
        assert run.error["code"] == ErrorCode.hub_unreachable and "cannot be reached" in run.error["message"]
        with transaction() as session:
            session.execute(update(Run).values(claimable_at=None))
    assert execute_next(worker)
    with read_session() as session:
        assert session.exec(select(Run)).one().status is RunStatus.failed
    assert hub.requests.count("api/models/org/name") == 4, "each attempt asks once"


def read_database_time() -> datetime:
    with read_session() as session:
        now = session.scalar(select(database_now()))
    assert now is not None
    return now


def test_a_download_ends_when_the_run_is_cancelled(worker: WorkerContext, hub: FakeHub) -> None:
    with pytest.raises(LaunchStopped):
        fetch_model(None, "org/name", worker.settings, lambda: True)


def test_an_adapter_under_a_root_brings_a_base_that_is_allowed_itself(
    worker: WorkerContext, tmp_path: Path
) -> None:
    root = worker.settings.model_roots[0]
    allowed = write_adapter(root / "allowed", str(root / "base"))
    model = fetch(worker, str(allowed))
    assert (model.base, model.adapter, model.origin) == (str(root / "base"), allowed, str(root / "base"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    error = refusal(lambda: fetch(worker, str(write_adapter(root / "evil", str(tmp_path / "outside")))))
    assert error.code is ErrorCode.model_not_found and "not under a root" in error.message


def test_an_adapter_of_the_hub_names_no_folder_of_this_host(worker: WorkerContext, hub: FakeHub) -> None:
    base = str(worker.settings.model_roots[0] / "base")
    files = {"adapter_config.json": json.dumps(LORA | {"base_model_name_or_path": base}).encode()}
    hub.add_model("org/adapter", {**files, "adapter_model.safetensors": save(WEIGHTS)})
    assert "not a hub id" in refusal(lambda: fetch(worker, "org/adapter")).message
    commit = hub.add_model("org/name", MODEL)
    files = {"adapter_config.json": json.dumps(LORA | {"base_model_name_or_path": "org/name"}).encode()}
    hub.add_model("org/adapter", {**files, "adapter_model.safetensors": save(WEIGHTS)})
    assert fetch(worker, "org/adapter").origin == f"org/name@{commit}"


@pytest.mark.parametrize("name", ["link", "file", "sub/../../outside"])
def test_a_source_whose_real_path_is_outside_the_roots_is_refused(
    worker: WorkerContext, tmp_path: Path, name: str
) -> None:
    root = worker.settings.dataset_roots[0]
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "train.jsonl").write_text("{}\n")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "file").symlink_to(tmp_path / "outside" / "train.jsonl")
    error = refusal(lambda: source(worker, str(root / name)))
    assert error.code is ErrorCode.dataset_not_found


def test_a_program_and_its_engine_get_absolute_paths_no_hub_and_no_token(
    worker: WorkerContext, hub: FakeHub, trap: Path
) -> None:
    hub.add_dataset("text", {"train.jsonl": b'{"prompt": "a", "completion": "b"}\n'})
    config = PrepareConfig(stage="prepare", source=HubSource(name="text"))
    with transaction() as session:
        job = Job(name="job")
        session.add(job)
        session.flush()
        fields: dict[str, Any] = {"stage": StageKind.prepare, "queue": Queue.cpu, "attempt": 1}
        run = Run(job_id=job.id, position=0, name="r", config=config.model_dump(mode="json"), **fields)
        session.add(run)
    launch = prepare_launch(run, worker.settings, NO_DEVICES)
    written = json.loads((launch.run_dir / "config.json").read_text())
    assert Path(written["source"]["name"]).is_absolute()
    environment = program_environment(NO_DEVICES)
    assert environment["HF_HUB_OFFLINE"] == environment["HF_DATASETS_OFFLINE"] == "1"
    assert not {"HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY"} & environment.keys()


def test_a_program_starts_in_an_empty_folder(worker: WorkerContext, submit: Submit, trap: Path) -> None:
    run_id = submit("assert not os.listdir() and os.path.isdir(os.getcwd())\nsucceed()")
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.succeeded


def test_a_checkpoint_that_was_changed_is_not_resumed(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit("checkpoint(7)\nwait_for('never') if attempt == 1 else succeed()")
    store = worker.settings.data_dir / "artifacts"
    with transaction() as session:
        stored = save_checkpoint(store, run_id)
        session.add(stored)
    (store / stored.artifact / "optimizer.pt").write_bytes(b"another pickle")
    assert execute_next(worker)
    error = row(run_id).error
    assert error is not None and error["code"] == "artifact_corrupt" and "optimizer.pt" in error["message"]


def save_checkpoint(store: Path, run_id: str) -> Checkpoint:
    from app.storage.opening import get_store

    folder = store.parent / "checkpoint"
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    published = get_store().publish_folder(folder, f"checkpoints/{run_id}/1-00000007")
    fields: dict[str, Any] = {"artifact": published.key, "sha256": published.sha256, "size_bytes": 8}
    return Checkpoint(run_id=run_id, attempt=0, step=7, **fields)
