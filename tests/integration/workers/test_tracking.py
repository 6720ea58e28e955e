"""Export of runs to real tracking services.

Goal: whatever a program measures arrives once in MLflow, W&B and TensorBoard, after any crash and any outage,
and no outage delays or fails a run. Method: a real MLflow server, W&B offline and TensorBoard files are read
back; servers, programs and exporters are killed.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlmodel import col, select
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from app.runs import lifecycle
from app.storage.database import read_session, transaction
from app.tables import Event, EventType, FineTuningJob, Run, RunStatus
from tests.integration.workers.conftest import execute_next, row
from tests.integration.workers.test_execute import in_thread, move, until
from tests.services import MlflowServer
from workers.hosts.worker import WorkerContext
from workers.tracking.tracker import Tracker

Submit = Callable[..., str]
SECONDS = 180
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

# Writes metrics as a real program does, and waits for a file that the test creates.
PROGRAM = """
def log(*steps):
    for step in steps:
        values = {"loss": 1 / step, "eval/acc": 0.5, "odd": None}
        event = {"type": "metrics", "time": NOW, "step": step, "total_steps": 9, "values": values}
        write("events.jsonl", json.dumps(event) + "\\n", "a")

def wait_for(name):
    while not (run_dir.parents[2] / name).exists():
        time.sleep(0.05)

"""
KILLED_AT_5 = """
if attempt == 1:
    log(1, 2, 3)
    checkpoint(3)
    log(4, 5)
    wait_for("go")
    os.kill(os.getpid(), signal.SIGKILL)
log(4, 5, 6)
succeed(metrics={"score": 0.25, "note": "text"})
"""


@pytest.fixture
def tracked(worker: WorkerContext, mlflow: MlflowServer) -> Iterator[WorkerContext]:
    """Yield a worker that exports to all three services."""
    worker.settings.mlflow_uri = worker.settings.mlflow_public_url = mlflow.url
    worker.settings.wandb_project, worker.settings.wandb_mode = "tuning", "offline"
    worker.settings.tensorboard_dir = str(worker.settings.data_dir / "boards")
    worker.tracker.start()
    yield worker
    worker.tracker.stop()


@pytest.fixture
def tracked_by_mlflow(tracked: WorkerContext) -> WorkerContext:
    """Return a worker that exports to MLflow only."""
    tracked.settings.wandb_project = tracked.settings.tensorboard_dir = ""
    return tracked


def links(run_id: str) -> dict[str, Any]:
    return {link["service"]: link for link in row(run_id).tracking}


def warnings(run_id: str) -> list[dict[str, Any]]:
    with read_session() as session:
        of_run = select(Event).where(Event.run_id == run_id, Event.type == EventType.warning)
        return [event.data for event in session.exec(of_run.order_by(col(Event.seq)))]


def is_complete(run_id: str) -> bool:
    found = row(run_id).tracking
    return bool(found) and all(link["complete"] for link in found)


def wait_until_complete(worker: WorkerContext, run_id: str) -> None:
    """Wait until all services have everything; on failure show what they have, and the exporter's log."""
    deadline = time.monotonic() + SECONDS
    while not is_complete(run_id):
        log = worker.settings.data_dir / "tracking" / "exporter.log"
        assert time.monotonic() < deadline, f"{row(run_id).tracking}\n{log.read_text()}"
        time.sleep(0.05)


def create(worker: WorkerContext, name: str) -> None:
    (worker.settings.data_dir / name).touch()


def losses(mlflow: MlflowServer, run_id: str) -> list[int]:
    """Return the steps whose loss MLflow has."""
    return [step for step, _ in mlflow.history(mlflow.run_of(run_id), "loss")]


def wandb_records(folder: Path) -> list[Any]:
    """Return the records of a W&B run on disk: a LevelDB log of protobuf messages."""
    (file,) = folder.glob("*.wandb")
    log, at, messages, message = file.read_bytes(), 7, [], b""
    while at + 7 <= len(log):
        _, length, kind = struct.unpack("<IHB", log[at : at + 7])
        message += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            messages.append(message)
            message = b""
        left = 32768 - at % 32768
        at += left if left < 7 else 0
    return [Record.FromString(message) for message in messages]


def wandb_steps(folder: Path) -> list[int]:
    histories = [record.history for record in wandb_records(folder) if record.HasField("history")]
    return [history.step.num for history in histories]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def has_arrived(run_id: str, step: int) -> bool:
    """Whether the services that confirm steps have received this one, and W&B has begun."""
    found = links(run_id)
    confirmed = [found.get(name, {}).get("step") for name in ("mlflow", "tensorboard")]
    return confirmed == [step, step] and found["wandb"]["url"] is not None


def folder_of(link: dict[str, Any]) -> Path:
    return Path(link["url"].removeprefix("file://"))


def set_max_steps(run_id: str, steps: int) -> None:
    with transaction() as session:
        run = session.get_one(Run, run_id)
        run.config = run.config | {"max_steps": steps}


def test_a_resumed_attempt_continues_the_same_run_and_sends_no_step_twice(
    tracked: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    run_id = submit(PROGRAM + KILLED_AT_5)
    set_max_steps(run_id, 8)
    first = in_thread(lambda: execute_next(tracked))
    until(lambda: has_arrived(run_id, 5), SECONDS)
    before = links(run_id)
    create(tracked, "go")
    first.join()
    assert mlflow.run_of(run_id)["info"]["status"] == "RUNNING"
    set_max_steps(run_id, 9)
    assert execute_next(tracked)
    wait_until_complete(tracked, run_id)
    assert (row(run_id).status, warnings(run_id)) == (RunStatus.succeeded, [])
    after = links(run_id)
    assert [after[name]["run_id"] for name in before] == [before[name]["run_id"] for name in before]

    run = mlflow.run_of(run_id)
    assert after["mlflow"]["url"].endswith(f"/runs/{run['info']['run_id']}")
    assert losses(mlflow, run_id) == [1, 2, 3, 4, 5, 6]
    assert mlflow.history(run, "result.metrics.score")[0][1] == 0.25
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    found = run["info"]["status"], tags["tunesmith.attempt"], tags["changed.max_steps"]
    assert found == ("FINISHED", "2", "9")
    folders = [folder_of(found["wandb"]) for found in (before, after)]
    assert [step for folder in folders for step in wandb_steps(folder)] == [1, 2, 3, 4, 5, 6]
    expected: list[tuple[int, Any]] = [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4, 5, 6)]
    assert scalars(folder_of(after["tensorboard"]), "loss") == expected


def test_a_fine_tuning_job_goes_to_the_wandb_project_that_it_names(
    worker: WorkerContext, submit: Submit
) -> None:
    worker.settings.wandb_mode = "offline"
    worker.tracker.start()
    run_id = submit(PROGRAM + "log(1, 2)\nsucceed()")
    wandb = {"project": "support", "entity": None, "name": None, "tags": ["a"]}
    values: dict[str, Any] = {
        **dict.fromkeys(("model", "base", "base_name", "organization", "fine_tuned_model"), "m"),
        **{"training_file": "file-1", "seed": 1, "method": {}, "explanation": "", "engine": {}},
        "integrations": [{"type": "wandb", "wandb": wandb}],
    }
    fine_tuning_job = FineTuningJob(job_id=row(run_id).job_id, **values)
    with transaction() as session:
        session.add(fine_tuning_job)
        session.flush()
        job_id = fine_tuning_job.id
    assert execute_next(worker)
    wait_until_complete(worker, run_id)
    worker.tracker.stop()
    assert list(links(run_id)) == ["wandb"]
    records = wandb_records(folder_of(links(run_id)["wandb"]))
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.display_name) == ("support", job_id)
    assert set(run.tags) == {"openai/finetune", "openai/m", f"openai/{job_id}", "a"}


def test_a_killed_exporter_is_started_again_and_sends_each_step_once(
    tracked: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    run_id = submit(PROGRAM + "log(1, 2, 3)\nwait_for('go')\nlog(4, 5)\nsucceed()")
    thread = in_thread(lambda: execute_next(tracked))
    until(lambda: has_arrived(run_id, 3), SECONDS)
    (exporter,) = find_exporters()
    exporter.kill()
    create(tracked, "go")
    thread.join()
    wait_until_complete(tracked, run_id)
    assert losses(mlflow, run_id) == [1, 2, 3, 4, 5]
    found = links(run_id)
    assert wandb_steps(folder_of(found["wandb"])) == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(folder_of(found["tensorboard"]), "loss")] == [1, 2, 3, 4, 5]


def test_what_a_crashed_worker_has_not_sent_is_sent_after_its_restart(
    tracked_by_mlflow: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    worker = tracked_by_mlflow
    run_id = submit(PROGRAM + "log(1)\nwait_for('go')\nlog(2, 3)\nsucceed()")
    running = in_thread(lambda: execute_next(worker))
    until(lambda: links(run_id).get("mlflow", {}).get("step") == 1, SECONDS)
    worker.tracker.stop()
    create(worker, "go")
    running.join()
    assert (row(run_id).status, is_complete(run_id)) == (RunStatus.succeeded, False)
    worker.tracker = Tracker(worker.settings)
    worker.tracker.start()
    wait_until_complete(tracked_by_mlflow, run_id)
    assert (losses(mlflow, run_id), mlflow.run_of(run_id)["info"]["status"]) == ([1, 2, 3], "FINISHED")


def test_metrics_of_an_attempt_that_a_service_missed_are_sent_by_the_next_attempt(
    tracked_by_mlflow: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    create(tracked_by_mlflow, "go")
    mlflow.stop()
    run_id = submit(PROGRAM + KILLED_AT_5)
    assert execute_next(tracked_by_mlflow)
    mlflow.start()
    assert execute_next(tracked_by_mlflow)
    wait_until_complete(tracked_by_mlflow, run_id)
    assert losses(mlflow, run_id) == [1, 2, 3, 4, 5, 6]


def test_a_server_that_was_down_receives_the_rest_even_after_the_end_of_the_run(
    tracked_by_mlflow: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    run_id = submit(PROGRAM + "log(1, 2)\nwait_for('away')\nlog(3, 4)\nsucceed()")
    thread = in_thread(lambda: execute_next(tracked_by_mlflow))
    until(lambda: links(run_id).get("mlflow", {}).get("step") == 2, SECONDS)
    mlflow.stop()
    create(tracked_by_mlflow, "away")
    thread.join()
    assert (row(run_id).status, metric_steps(run_id)) == (RunStatus.succeeded, [1, 2, 3, 4])
    until(lambda: bool(warnings(run_id)), SECONDS)
    (link,) = row(run_id).tracking
    assert (link["step"], link["complete"]) == (2, False) and "refused" in link["error"]
    mlflow.start()
    wait_until_complete(tracked_by_mlflow, run_id)
    assert losses(mlflow, run_id) == [1, 2, 3, 4]
    (unreachable,) = warnings(run_id)
    assert unreachable["code"] == "tracking_unreachable" and "TUNESMITH_MLFLOW_URI" in unreachable["hint"]
    assert links(run_id)["mlflow"]["error"] is None


def test_a_service_that_never_responds_delays_nothing_and_is_given_up_with_a_warning(
    worker: WorkerContext, submit: Submit
) -> None:
    # It accepts connections and never responds, which is worse than to refuse them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        worker.settings.mlflow_uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        worker.settings.tracking_retry_seconds = 2
        worker.tracker.start()
        run_id = submit(PROGRAM + "log(1, 2)\nsucceed()")
        started_at = time.monotonic()
        assert execute_next(worker)
        assert time.monotonic() - started_at < 20
        assert row(run_id).status is RunStatus.succeeded
        until(lambda: bool(warnings(run_id)), SECONDS)
    worker.tracker.stop()
    assert [warning["code"] for warning in warnings(run_id)] == ["tracking_incomplete"]
    assert metric_steps(run_id) == [1, 2]
    assert (find_exporters(), list((worker.settings.data_dir / "tracking").glob("run*"))) == ([], [])


@pytest.mark.parametrize(
    ("requested", "status"),
    [(RunStatus.cancelling, "KILLED"), (None, "FAILED")],
)
def test_the_end_of_a_run_is_a_status_of_the_service(
    tracked_by_mlflow: WorkerContext,
    submit: Submit,
    mlflow: MlflowServer,
    requested: RunStatus | None,
    status: str,
) -> None:
    error = {"code": "loss_not_finite", "message": "m", "hint": "h"}
    failing = f"wait_for('go')\nwrite('error.json', {json.dumps(error)!r})"
    run_id = submit(PROGRAM + "log(1)\n" + failing)
    thread = in_thread(lambda: execute_next(tracked_by_mlflow))
    until(lambda: links(run_id).get("mlflow", {}).get("step") == 1, SECONDS)
    move(run_id, requested) if requested else create(tracked_by_mlflow, "go")
    thread.join()
    wait_until_complete(tracked_by_mlflow, run_id)
    run = mlflow.run_of(run_id)
    assert (run["info"]["status"], "end_time" in run["info"]) == (status, True)
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert requested or "loss_not_finite" in tags["error"]


def test_one_exporter_serves_all_runs_with_the_keys_of_the_services_only(
    tracked: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"WANDB_API_KEY": "w", "MLFLOW_TRACKING_TOKEN": "m", "TUNESMITH_BROKER_URL": "b", "HF_TOKEN": "h"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    run_ids = [submit(PROGRAM + "log(1)\nsucceed()") for _ in range(2)]
    assert execute_next(tracked) and execute_next(tracked)
    until(lambda: all(is_complete(run_id) for run_id in run_ids), SECONDS)
    (exporter,) = find_exporters()
    assert keys.keys() & exporter.environ().keys() == {"WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"}
    (core,) = [process for process in exporter.children(recursive=True) if "wandb-core" in process.name()]
    assert "TUNESMITH_DATABASE_URL" not in core.environ()


def test_a_stale_attempt_sends_nothing_more(
    tracked_by_mlflow: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    run_id = submit(PROGRAM + "log(1)\nwait_for('go')\nlog(2)\nwait_for('never')")
    thread = in_thread(lambda: execute_next(tracked_by_mlflow))
    until(lambda: links(run_id).get("mlflow", {}).get("step") == 1, SECONDS)
    with transaction() as session:
        lifecycle.move(session, run_id, RunStatus.queued)
    thread.join()
    assert list((tracked_by_mlflow.settings.data_dir / "tracking").glob("run*")) == []
    assert (losses(mlflow, run_id), mlflow.run_of(run_id)["info"]["status"]) == ([1], "RUNNING")


def find_exporters() -> list[psutil.Process]:
    """Return the exporter processes that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        # Others of its processes may end meanwhile.
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[1:3] == ["-m", "workers.tracking"]:
                found.append(process)
    return found


def metric_steps(run_id: str) -> list[int | None]:
    with read_session() as session:
        of_run = select(Event).where(Event.run_id == run_id, Event.type == EventType.metrics)
        return [event.step for event in session.exec(of_run.order_by(col(Event.seq)))]


def test_a_worker_without_the_package_of_a_service_refuses_to_start(
    worker: WorkerContext, tmp_path: Path
) -> None:
    start = (
        "import sys; sys.modules['wandb'] = None; sys.argv[1:] = ['--queue', 'cpu']\n"
        "from workers.__main__ import program\nprogram()"
    )
    variables = os.environ | {"TUNESMITH_WANDB_PROJECT": "tuning", "TUNESMITH_DATA_DIR": str(tmp_path)}
    refused = subprocess.run(
        [sys.executable, "-c", start], env=variables, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 1
    assert "TUNESMITH_WANDB_PROJECT cannot be used" in refused.stderr and ".[tracking]" in refused.stderr
