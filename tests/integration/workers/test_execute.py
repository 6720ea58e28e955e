"""Execution of one attempt, with real programs that misbehave."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

from app.deployments import lifecycle as deployments
from app.runs import lifecycle
from app.scheduling import queue, sweeper
from app.storage import artifacts
from app.storage.artifacts import ArtifactStore
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
from app.storage.remote.protocol import PublishedArtifact
from app.tables import (
    Checkpoint,
    Deployment,
    DeploymentStatus,
    Event,
    EventType,
    Model,
    ModelKind,
    Run,
    RunStatus,
)
from app.workers.gpus import Gpu
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import Queue, StageKind, parse_stage
from workers.hosts.devices import DevicePool
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.runs import complete
from workers.runs.checkpoints import estimate_checkpoint_bytes, estimate_save_seconds
from workers.runs.complete import RunAttempt

Submit = Callable[..., str]
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
FOREVER = "print('started', flush=True)\ntime.sleep(60)\n"


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.runs.execute.POLL_SECONDS", 0.05)


def run_dir_of(worker: WorkerContext, run_id: str) -> Path:
    return worker.settings.data_dir / "runs" / run_id / "attempt-1"


def has_started(worker: WorkerContext, run_id: str) -> bool:
    log = run_dir_of(worker, run_id) / "log.txt"
    return log.exists() and "started" in log.read_text()


def move(run_id: str, to: RunStatus) -> None:
    with transaction() as session:
        assert lifecycle.move(session, run_id, to) is not None


def checkpoint_steps(run_id: str) -> list[int]:
    with read_session() as session:
        found = select(col(Checkpoint.step)).where(col(Checkpoint.run_id) == run_id)
        return list(session.exec(found.order_by(col(Checkpoint.step))))


@on_sqlite
@pytest.mark.parametrize("link", ["model/link", "link.txt"])
def test_no_file_is_published_to_which_a_link_of_the_program_leads(
    worker: WorkerContext, submit: Submit, link: str
) -> None:
    worker.settings.max_failures = 0
    run_id = submit(f"succeed()\n(run_dir / {link!r}).symlink_to('/etc/passwd')")
    assert execute_next(worker)
    assert row(run_id).status is (RunStatus.failed if link.startswith("model") else RunStatus.succeeded)
    assert not get_store().exists(f"runs/{run_id}/1/link.txt")


@on_sqlite
@pytest.mark.parametrize(
    "result",
    [
        "not JSON",
        "[]",
        "{}",
        '{"model": {"path": "/etc", "kind": "adapter"}}',
        '{"model": {"path": "nowhere", "kind": "adapter"}}',
        '{"model": {"path": "model", "kind": "other"}}',
    ],
)
def test_an_unusable_result_fails_the_run_and_its_log_is_published(
    worker: WorkerContext, submit: Submit, result: str
) -> None:
    worker.settings.max_failures = 0
    run_id = submit(f"succeed()\nwrite('result.json', {result!r})")
    assert execute_next(worker)
    run = row(run_id)
    assert run.status is RunStatus.failed
    assert run.error is not None and run.error["code"] == "program_without_result"
    assert run.log_artifact is not None and get_store().exists(run.log_artifact), (
        "its hint is to read the log"
    )


def test_nul_characters_which_postgresql_rejects_are_replaced(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit("print('a\\0b', flush=True)\nsucceed(note='a\\0b')")
    assert execute_next(worker)
    run = row(run_id)
    assert run.status is RunStatus.succeeded and run.result is not None
    assert run.result["note"] == "a\ufffdb"


@on_sqlite
def test_an_incomplete_event_of_a_cancelled_run_does_not_delay_its_end(
    worker: WorkerContext, submit: Submit
) -> None:
    torn = "signal.signal(15, lambda *_: write('events.jsonl', '{\"type\": \"met', 'a') or os._exit(1))\n"
    run_id = submit(torn + FOREVER)
    thread = in_thread(lambda: execute_next(worker))
    until(lambda: has_started(worker, run_id))
    move(run_id, RunStatus.cancelling)
    thread.join()
    assert row(run_id).status is RunStatus.cancelled


@on_sqlite
def test_an_exception_of_the_worker_queues_the_run_again_at_once(
    worker: WorkerContext, submit: Submit
) -> None:
    run_id = submit("succeed()", config={"stage": "sft", "base": {"stage": "nonesuch"}, "dataset": "none"})
    assert execute_next(worker)
    run = row(run_id)
    assert (run.status, run.failure_count, run.attempt) == (RunStatus.queued, 1, 1)


@on_sqlite
def test_a_config_of_another_version_fails_the_run_with_a_code(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit("succeed()", config={"stage": "sft", "of": "a later version", "base": "hub/model"})
    assert execute_next(worker)
    assert (row(run_id).error or {})["code"] == "config_invalid"


@on_sqlite
def test_a_stale_attempt_removes_its_own_directory_only(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit(FOREVER)
    first = in_thread(lambda: execute_next(worker))
    until(lambda: has_started(worker, run_id))
    with transaction() as session:
        # As the sweeper does once the lease has ended.
        lifecycle.move(session, run_id, RunStatus.queued)
        lifecycle.claim(session, worker.worker_id, [Queue.cpu], list(StageKind), 60)
    second = worker.settings.data_dir / "runs" / run_id / "attempt-2" / "log.txt"
    second.parent.mkdir(parents=True)
    second.touch()
    first.join()
    assert second.exists()
    assert not (second.parents[1] / "attempt-1").exists()


@on_sqlite
def test_a_checkpoint_resets_the_failure_count(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit("checkpoint(3)\nos.kill(os.getpid(), 9)", failure_count=worker.settings.max_failures)
    assert execute_next(worker)
    run = row(run_id)
    assert (run.status, run.failure_count) == (RunStatus.queued, 1)


class SlowStore(ArtifactStore):
    """A store that copies a checkpoint only after the program has deleted it, except for the last one."""

    def publish_folder(self, folder: Path, key: str) -> PublishedArtifact:
        if key.startswith("checkpoints") and not key.endswith(f"{LAST_STEP:08d}"):
            deleted = folder.parents[1] / "checkpoints" / folder.name
            until(lambda: not deleted.exists())
        return super().publish_folder(folder, key)


LAST_STEP = 5
# Deletes a checkpoint once the worker holds the next one by links in `.held`.
PRUNING = f"""
import shutil
for step in range(1, {LAST_STEP + 1}):
    checkpoint(step)
    wait_for(f".held/step-{{step:08d}}")
    if step > 1:
        shutil.rmtree(run_dir / f"checkpoints/step-{{step - 1:08d}}")
wait_for("finish")
succeed()
"""


@on_sqlite
def test_a_slow_store_receives_the_last_checkpoint(
    worker: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowStore(worker.settings.artifacts_url, worker.settings.data_dir / "cache")
    monkeypatch.setattr("workers.runs.checkpoints.get_store", lambda: slow)
    run_id = submit(PRUNING)
    thread = in_thread(lambda: execute_next(worker))
    until(lambda: checkpoint_steps(run_id) != [])
    assert row(run_id).status is RunStatus.running
    (run_dir_of(worker, run_id) / "finish").touch()
    thread.join()
    assert row(run_id).status is RunStatus.succeeded
    assert checkpoint_steps(run_id)[-1] == LAST_STEP


class Outage:
    """An outage of the database: no transaction can begin inside the block."""

    def __init__(self) -> None:
        self._failures: Counter[int] = Counter()

    def __enter__(self) -> Self:
        event.listen(Session, "after_begin", self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Session, "after_begin", self._raise)

    def wait_for_failures(self, thread: threading.Thread, count: int) -> None:
        """Wait until the thread has failed to begin this many further transactions."""
        assert thread.ident is not None
        wanted = self._failures[thread.ident] + count
        until(lambda: self._failures[thread.ident or 0] >= wanted or not thread.is_alive())

    def _raise(self, *_: object) -> None:
        self._failures[threading.get_ident()] += 1
        raise OperationalError("BEGIN", {}, Exception("the database is unavailable"))


@on_sqlite
def test_a_run_that_ends_during_an_outage_loses_no_checkpoint_and_no_event(
    worker: WorkerContext, submit: Submit
) -> None:
    run_id = submit(
        "print('started', flush=True)\nwait_for('finish')\n"
        "checkpoint(7)\nprint('last', flush=True)\nsucceed()"
    )
    thread = in_thread(lambda: execute_next(worker))
    until(lambda: has_started(worker, run_id))
    with Outage() as outage:
        (run_dir_of(worker, run_id) / "finish").touch()
        until((run_dir_of(worker, run_id) / "result.json").exists)
        outage.wait_for_failures(thread, 10)
        assert thread.is_alive()
    thread.join()
    assert row(run_id).status is RunStatus.succeeded
    assert checkpoint_steps(run_id) == [7]
    with read_session() as session:
        logs = session.exec(select(Event).where(Event.run_id == run_id, Event.type == EventType.log)).all()
    assert "last" in [line for log in logs for line in log.data["lines"]]


def test_a_committed_end_whose_response_was_lost_keeps_its_model(
    worker: WorkerContext, submit: Submit
) -> None:
    run_id = submit("succeed()")
    executing, is_lost = threading.get_ident(), threading.Event()

    def lose_the_response(session: Session) -> None:
        # The heartbeat commits in a thread of its own.
        if is_lost.is_set() or threading.get_ident() != executing:
            return
        with read_session() as other:
            if other.get_one(Run, run_id).status is RunStatus.succeeded:
                is_lost.set()
                raise OperationalError("COMMIT", {}, Exception("connection lost"))

    event.listen(Session, "after_commit", lose_the_response)
    try:
        assert execute_next(worker)
    finally:
        event.remove(Session, "after_commit", lose_the_response)
    assert is_lost.is_set()
    run = row(run_id)
    assert run.status is RunStatus.succeeded
    assert get_store().exists(f"models/{run.model_id}/weights")


@on_sqlite
def test_a_base_that_the_run_has_produced_is_that_of_its_adapter(
    worker: WorkerContext, submit: Submit
) -> None:
    model = {"path": "model", "kind": "adapter", "base": "", "base_path": "whole"}
    files = "write('whole/weights', 'b')\nwrite('model/adapter_config.json', '{}')\n"
    run_id = submit(f"{files}succeed(model={model})")
    assert execute_next(worker)
    with read_session() as session:
        adapter = session.get_one(Model, row(run_id).model_id)
        base = session.get_one(Model, adapter.base)
    assert (adapter.kind, base.kind) == (ModelKind.adapter, ModelKind.base)
    assert (base.name, base.run_id) == (f"{adapter.name}-base", run_id)
    assert get_store().exists(f"{base.artifact}/weights")
    config = get_store().local_path(f"{adapter.artifact}/adapter_config.json")
    assert config is not None and json.loads(config.read_text())["base_model_name_or_path"] == base.id


def test_a_committed_checkpoint_whose_response_was_lost_does_not_end_the_attempt(
    worker: WorkerContext, submit: Submit
) -> None:
    run_id = submit("checkpoint(3)\nwait_for('finish')\nsucceed()")
    is_lost = threading.Event()
    (heartbeat,) = (thread for thread in threading.enumerate() if thread.name == "heartbeat")

    def lose_the_response(session: Session) -> None:
        # The heartbeat commits in a thread of its own.
        is_executing = threading.current_thread() is not heartbeat
        if is_executing and not is_lost.is_set() and checkpoint_steps(run_id) == [3]:
            is_lost.set()
            raise OperationalError("COMMIT", {}, Exception("connection lost"))

    event.listen(Session, "after_commit", lose_the_response)
    try:
        thread = in_thread(lambda: execute_next(worker))
        until(is_lost.is_set)
        (run_dir_of(worker, run_id) / "finish").touch()
        thread.join()
    finally:
        event.remove(Session, "after_commit", lose_the_response)
    assert row(run_id).status is RunStatus.succeeded and row(run_id).attempt == 1
    assert checkpoint_steps(run_id) == [3]


@on_sqlite
def test_a_run_that_pauses_gets_the_time_that_its_checkpoints_take(
    worker: WorkerContext, submit: Submit
) -> None:
    worker.settings.pause_grace_seconds = 0.5
    save = "signal.signal(15, lambda *_: (time.sleep(2), checkpoint(6), sys.exit(75)))"
    run_id = submit(f"{save}\ncheckpoint(3, seconds=4)\ntime.sleep(60)")
    thread = in_thread(lambda: execute_next(worker))
    until(lambda: checkpoint_steps(run_id) == [3])
    move(run_id, RunStatus.pausing)
    thread.join()
    assert (row(run_id).status, checkpoint_steps(run_id)) == (RunStatus.paused, [3, 6])


@on_sqlite
def test_a_pause_before_the_first_checkpoint_gets_the_time_that_its_size_needs(
    worker: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.settings.pause_grace_seconds = 1.5
    monkeypatch.setattr("workers.runs.checkpoints.SAVE_BYTES_PER_SECOND", 1)
    save = (
        "signal.signal(15, lambda *_: (time.sleep(2 * (attempt - 1)), checkpoint(3 * attempt), sys.exit(75)))"
    )
    run_id = submit(f"{save}\n{FOREVER}")
    for attempt in (1, 2):
        thread = in_thread(lambda: execute_next(worker))
        log = run_dir_of(worker, run_id).with_name(f"attempt-{attempt}") / "log.txt"
        until(lambda log=log: log.exists() and "started" in log.read_text())  # type: ignore[misc]
        move(run_id, RunStatus.pausing)
        thread.join()
        assert (row(run_id).status, checkpoint_steps(run_id)[-1]) == (RunStatus.paused, 3 * attempt)
        move(run_id, RunStatus.queued)


@pytest.mark.parametrize(("tuning", "seconds"), [("full", 60), ("lora", 2)])
def test_the_first_checkpoint_is_estimated_from_the_weights_of_the_base(
    tuning: str, seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runs.checkpoints.SAVE_BYTES_PER_SECOND", 10)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(bytes(50))
    stage = {"stage": "sft", "base": str(tmp_path), "dataset": "rows", "tuning": {"method": tuning}}
    size = estimate_checkpoint_bytes(tmp_path, parse_stage(stage), str(tmp_path))
    assert estimate_save_seconds(size) == seconds


@on_sqlite
@pytest.mark.parametrize("requested", [RunStatus.cancelling, RunStatus.pausing])
def test_the_status_in_the_database_decides_what_a_stopped_run_becomes(
    worker: WorkerContext, submit: Submit, requested: RunStatus
) -> None:
    submit("")
    with transaction() as session:
        run = lifecycle.claim(session, worker.worker_id, [Queue.cpu], worker.stages, 60)
    assert run is not None
    move(run.id, requested)
    lease = Lease(run.id, 60, time.monotonic(), lambda _: None)
    complete.end_attempt(RunAttempt(run, worker.settings, lease, stop_requested=True), None)
    assert row(run.id).status is {"cancelling": RunStatus.cancelled, "pausing": RunStatus.paused}[requested]


class FullStore(ArtifactStore):
    """A store whose disk becomes full during a publication."""

    def _write(self, content: bytes, destination: str) -> None:
        raise OSError(28, "No space left on device")


def test_a_failed_publication_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("w")
    store = FullStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")
    with pytest.raises(OSError, match="No space"):
        store.publish_folder(tmp_path / "model", "models/one")
    assert list((tmp_path / "store").rglob("*.part")) == []


@on_sqlite
def test_publishing_a_model_is_retried_while_the_store_is_unavailable(
    worker: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = get_store()
    put, failures = artifacts.ArtifactStore.publish_folder, [OSError("unavailable"), OSError("unavailable")]

    def publish(folder: Path, key: str) -> PublishedArtifact:
        if failures:
            raise failures.pop()
        return put(store, folder, key)

    monkeypatch.setattr("workers.runs.complete.STORE_RETRY_SECONDS", (0.1, 0.1))
    monkeypatch.setattr(store, "publish_folder", publish)
    run_id = submit("succeed()")
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.succeeded


@on_sqlite
def test_a_changed_dataset_fails_the_run_at_once(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit("succeed()")
    (stored,) = (worker.settings.data_dir / "artifacts").iterdir()
    stored.write_bytes(b"changed!")
    assert execute_next(worker)
    run = row(run_id)
    assert run.status is RunStatus.failed and run.error is not None and run.failure_count == 0
    assert run.error["code"] == "artifact_corrupt" and stored.name in run.error["message"]
    assert not run_dir_of(worker, run_id).parent.exists()


def deploy_stage(model: str) -> dict[str, object]:
    return {
        "stage": StageKind.deploy,
        "queue": Queue.cuda,
        "device_count": 0,
        "config": {"stage": "deploy", "model": model, "deployment": "tuned"},
    }


@on_sqlite
def test_a_deploy_stage_leaves_the_only_gpu_to_its_engine(
    worker: WorkerContext, submit: Submit, tmp_path: Path
) -> None:
    worker.devices = DevicePool([Gpu(0, "GPU-1", "one", 1 << 30)], tmp_path / "locks")
    run_id = submit("", **deploy_stage("hub/model"))
    thread = in_thread(lambda: execute_next(worker))
    until(lambda: waiting_deployment() is not None)
    engine = worker.devices.take(Queue.cuda)
    assert engine is not None, "the engine could not start"
    waiting = waiting_deployment()
    assert waiting is not None
    with transaction() as session:
        claimed = deployments.claim(session, waiting.id, worker.worker_id, 60)
        assert claimed is not None
        deployments.mark_ready(session, claimed.id, claimed.attempt, "http://127.0.0.1:1", "base")
    thread.join()
    assert row(run_id).status is RunStatus.succeeded
    # The GPU is in use: a stage that replaces the deployment must run nevertheless.
    submit("", **deploy_stage("hub/other"))
    again = in_thread(lambda: execute_next(worker))
    until(lambda: waiting_deployment() is not None)
    worker.stopping.set()
    again.join()
    worker.devices.release(engine)


@on_sqlite
def test_a_deploy_stage_survives_an_outage_of_the_database(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit("", **deploy_stage("hub/model") | {"queue": Queue.cpu})
    thread = in_thread(lambda: execute_next(worker))
    until(lambda: waiting_deployment() is not None)
    with Outage() as outage:
        outage.wait_for_failures(thread, 2)
    assert thread.is_alive()
    move(run_id, RunStatus.cancelling)
    thread.join()
    assert row(run_id).status is RunStatus.cancelled
    assert waiting_deployment() is None


def waiting_deployment() -> Deployment | None:
    with read_session() as session:
        waits = col(Deployment.status) == DeploymentStatus.queued
        return session.exec(select(Deployment).where(waits)).one_or_none()


def test_the_sweeper_notifies_only_while_a_worker_is_idle(
    worker: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = worker.settings.data_dir / "queue" / "messages"
    queue.get_celery()
    # The worker stays alive although this process is stopped for seconds.
    worker.settings.heartbeat_seconds = 20
    submit(FOREVER)
    with transaction() as session:
        lifecycle.claim(session, worker.worker_id, [Queue.cpu], worker.stages, 60)
    submit(FOREVER, notified_at=datetime.now(UTC) - timedelta(hours=1))
    sweeper.sweep_once(worker.settings)
    assert queue.get_notifier().wait(10)
    assert list(messages.iterdir()) == [], "its only worker is busy"
    with transaction() as session:
        lifecycle.release_expired(session, 3)
    busy = next(iter(runs_of(RunStatus.running)))
    move(busy, RunStatus.cancelling)
    move(busy, RunStatus.cancelled)
    sweeper.sweep_once(worker.settings)
    assert queue.get_notifier().wait(10)
    assert len(list(messages.iterdir())) == 1


def runs_of(status: RunStatus) -> list[str]:
    with read_session() as session:
        return list(session.exec(select(col(Run.id)).where(col(Run.status) == status)))


OUT_OF_MEMORY = """
write("error-0.json", json.dumps({"code": "rank_lost", "message": "gloo", "time": "1"}))
write("error-1.json", json.dumps({"code": "out_of_memory", "message": "CUDA", "time": "2"}))
sys.exit(1)
"""
LOST = """
write("error-0.json", json.dumps({"code": "rank_lost", "message": "gloo", "time": "1"}))
sys.exit(1)
"""
HUNG = """
write("error-1.json", json.dumps({"code": "config_invalid", "message": "batch", "time": "1"}))
time.sleep(60)
"""


@on_sqlite
@pytest.mark.parametrize(
    ("program", "status", "code", "micro_batch_size"),
    [
        (OUT_OF_MEMORY, RunStatus.queued, "out_of_memory", 4),
        (LOST, RunStatus.queued, "rank_lost", 8),
        (HUNG, RunStatus.failed, "config_invalid", 8),
    ],
)
def test_the_cause_among_the_errors_of_ranks_decides_what_becomes_of_the_run(
    worker: WorkerContext,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    status: RunStatus,
    code: str,
    micro_batch_size: int,
) -> None:
    monkeypatch.setattr("workers.runs.execute.FAILED_RANK_SECONDS", 0.1)
    run_id = submit(program)
    with transaction() as session:
        run = session.get_one(Run, run_id)
        run.config = run.config | {"devices": 2, "micro_batch_size": 8, "activation_checkpointing": True}
    assert execute_next(worker)
    run = row(run_id)
    assert (run.status, run.config["micro_batch_size"]) == (status, micro_batch_size)
    assert last_error(run_id) == code


def last_error(run_id: str) -> str:
    with read_session() as session:
        of_run = select(Event).where(Event.run_id == run_id, Event.type == EventType.status)
        found = session.exec(of_run.order_by(col(Event.seq))).all()
    code: str = found[-1].data["error"]["code"]
    return code
