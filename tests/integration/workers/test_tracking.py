"""What a program tells arrives in real tracking services, once, and whatever they do, the run goes on."""

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
from app.tables import Event, EventType, Run, RunStatus
from tests.integration.workers.conftest import row
from tests.integration.workers.test_execute import in_thread, move, until
from tests.services import MlflowServer
from workers.hosts.worker import WorkerContext
from workers.runs.execute import execute_next

Submit = Callable[..., str]
SECONDS = 60
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

# Tells of steps, as a real program does, and waits for what a test has to see first.
TELLS = """
def tell(*steps):
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
    tell(1, 2, 3)
    checkpoint(3)
    tell(4, 5)
    wait_for("go")
    os.kill(os.getpid(), signal.SIGKILL)
tell(4, 5, 6)
succeed(metrics={"score": 0.25, "note": "text"})
"""


@pytest.fixture
def tracked(host: WorkerContext, mlflow: MlflowServer) -> WorkerContext:
    """A worker that sends to all three services."""
    host.settings.mlflow_uri = host.settings.mlflow_public_url = mlflow.url
    host.settings.wandb_project, host.settings.wandb_mode = "tuning", "offline"
    host.settings.tensorboard_dir = str(host.settings.data_dir / "boards")
    host.settings.tracking_flush_seconds = SECONDS
    return host


def links(run_id: str) -> dict[str, Any]:
    return {link["service"]: link for link in row(run_id).tracking}


def warnings(run_id: str) -> list[dict[str, Any]]:
    with read_session() as session:
        of_run = select(Event).where(Event.run_id == run_id, Event.type == EventType.warning)
        return [event.data for event in session.exec(of_run)]


def wandb_records(folder: Path) -> list[Any]:
    """The records of a W&B run on disk: a LevelDB log of protobuf messages."""
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


def arrived(run_id: str, step: int) -> bool:
    return all(link["step"] == step for link in row(run_id).tracking) and len(row(run_id).tracking) == 3


def folder_of(link: dict[str, Any]) -> Path:
    return Path(link["url"].removeprefix("file://"))


def set_max_steps(run_id: str, steps: int) -> None:
    with transaction() as session:
        run = session.get_one(Run, run_id)
        run.config = run.config | {"max_steps": steps}


def test_a_resumed_attempt_goes_on_with_the_same_run_and_no_step_stands_twice(
    tracked: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    run_id = submit(TELLS + KILLED_AT_5)
    set_max_steps(run_id, 8)
    first = in_thread(lambda: execute_next(tracked))
    until(lambda: arrived(run_id, 5), SECONDS)
    before = links(run_id)
    (tracked.settings.data_dir / "go").touch()
    first.join()
    assert mlflow.run_of(run_id)["info"]["status"] == "RUNNING"
    set_max_steps(run_id, 9)
    assert execute_next(tracked)
    assert (row(run_id).status, warnings(run_id)) == (RunStatus.succeeded, [])
    after = links(run_id)
    assert [after[name]["run_id"] for name in before] == [before[name]["run_id"] for name in before]

    run = mlflow.run_of(run_id)
    assert after["mlflow"]["url"].endswith(f"/runs/{run['info']['run_id']}")
    assert [step for step, _ in mlflow.history(run, "loss")] == [1, 2, 3, 4, 5, 6]
    assert mlflow.history(run, "result.metrics.score")[0][1] == 0.25
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert (run["info"]["status"], tags["tunesmith.attempt"], tags["changed.max_steps"]) == (
        "FINISHED",
        "2",
        "9",
    )
    steps = [wandb_steps(folder_of(found["wandb"])) for found in (before, after)]
    assert steps == [[1, 2, 3, 4, 5], [6]]
    losses = scalars(folder_of(after["tensorboard"]), "loss")
    assert losses == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4, 5, 6)]


def test_a_server_that_dies_has_the_rest_when_it_is_back_and_takes_nothing_from_the_run_when_it_is_not(
    tracked: WorkerContext, submit: Submit, mlflow: MlflowServer
) -> None:
    tracked.settings.wandb_project = tracked.settings.tensorboard_dir = ""
    steps = "tell(1, 2)\nwait_for('away')\ntell(3, 4)\nwait_for('gone')\ntell(5, 6)\nsucceed()"
    run_id = submit(TELLS + steps)
    worker = in_thread(lambda: execute_next(tracked))
    until(lambda: links(run_id).get("mlflow", {}).get("step") == 2, SECONDS)
    mlflow.stop()
    (tracked.settings.data_dir / "away").touch()
    until(lambda: bool(warnings(run_id)), SECONDS)
    mlflow.start()
    until(lambda: links(run_id)["mlflow"]["step"] == 4, SECONDS)
    history = mlflow.history(mlflow.run_of(run_id), "loss")
    mlflow.stop()
    (tracked.settings.data_dir / "gone").touch()
    worker.join()
    assert [step for step, _ in history] == [1, 2, 3, 4]
    assert (row(run_id).status, metric_steps(run_id)) == (RunStatus.succeeded, [1, 2, 3, 4, 5, 6])
    unreachable, incomplete = warnings(run_id)
    assert unreachable["code"] == "tracking_unreachable" and "TUNESMITH_MLFLOW_URI" in unreachable["hint"]
    assert incomplete["code"] == "tracking_incomplete" and "up to step 4" in incomplete["message"]


def test_a_service_that_never_answers_costs_a_run_a_bounded_wait_and_a_warning(
    host: WorkerContext, submit: Submit
) -> None:
    # It accepts connections and says nothing, which is worse than to refuse them.
    before = family()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host.settings.mlflow_uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        host.settings.tracking_flush_seconds = 2
        run_id = submit(TELLS + "tell(1, 2)\nsucceed()")
        began = time.monotonic()
        assert execute_next(host)
    assert row(run_id).status is RunStatus.succeeded
    assert time.monotonic() - began < 60
    assert [told["code"] for told in warnings(run_id)] == ["tracking_incomplete"]
    assert metric_steps(run_id) == [1, 2]
    assert family() == before


@pytest.mark.parametrize(
    ("asked", "status"),
    [(RunStatus.cancelling, "KILLED"), (None, "FAILED")],
)
def test_the_end_of_a_run_is_told_in_the_service_s_own_words(
    tracked: WorkerContext, submit: Submit, mlflow: MlflowServer, asked: RunStatus | None, status: str
) -> None:
    tracked.settings.wandb_project = tracked.settings.tensorboard_dir = ""
    error = {"code": "loss_not_finite", "message": "m", "hint": "h"}
    failing = f"wait_for('go')\nwrite('error.json', {json.dumps(error)!r})"
    run_id = submit(TELLS + "tell(1)\n" + failing)
    worker = in_thread(lambda: execute_next(tracked))
    until(lambda: "mlflow" in links(run_id), SECONDS)
    move(run_id, asked) if asked else (tracked.settings.data_dir / "go").touch()
    worker.join()
    run = mlflow.run_of(run_id)
    assert (run["info"]["status"], "end_time" in run["info"]) == (status, True)
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert asked or "loss_not_finite" in tags["error"]


def test_senders_see_their_own_keys_only_and_end_with_a_stale_attempt(
    tracked: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"WANDB_API_KEY": "w", "MLFLOW_TRACKING_TOKEN": "m", "TUNESMITH_BROKER_URL": "b", "HF_TOKEN": "h"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    before = family()
    run_id = submit(TELLS + "tell(1)\nwait_for('never')")
    worker = in_thread(lambda: execute_next(tracked))
    until(lambda: arrived(run_id, 1), SECONDS)
    started = family() - before
    seen = {name: keys.keys() & told.keys() for name, told in senders(started)}
    assert seen == {"mlflow": {"MLFLOW_TRACKING_TOKEN"}, "wandb": {"WANDB_API_KEY"}, "tensorboard": set()}
    core = next(process for process in started if "wandb-core" in process.name())
    assert "TUNESMITH_DATABASE_URL" not in core.environ()
    with transaction() as session:
        lifecycle.move(session, run_id, RunStatus.queued)
    worker.join()
    until(lambda: not any(alive(process) for process in started), SECONDS)


def family() -> set[psutil.Process]:
    """The processes that this one has started, down to the last."""
    return set(psutil.Process().children(recursive=True))


def senders(family: set[psutil.Process]) -> Iterator[tuple[str, dict[str, str]]]:
    """The service and the variables of each sender."""
    for process in family:
        command = process.cmdline()
        if command[1:3] == ["-m", "workers.tracking"]:
            yield Path(command[3]).name, process.environ()


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def metric_steps(run_id: str) -> list[int | None]:
    with read_session() as session:
        of_run = select(Event).where(Event.run_id == run_id, Event.type == EventType.metrics)
        return [event.step for event in session.exec(of_run.order_by(col(Event.seq)))]


def test_a_worker_without_the_package_of_a_service_refuses_to_start(
    host: WorkerContext, tmp_path: Path
) -> None:
    start = (
        "import sys; sys.modules['wandb'] = None; sys.argv[1:] = ['--queue', 'cpu']\n"
        "from workers.__main__ import main\nsys.exit(main())"
    )
    variables = os.environ | {"TUNESMITH_WANDB_PROJECT": "tuning", "TUNESMITH_DATA_DIR": str(tmp_path)}
    refused = subprocess.run(
        [sys.executable, "-c", start], env=variables, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert "TUNESMITH_WANDB_PROJECT cannot be used" in refused.stderr and ".[tracking]" in refused.stderr
