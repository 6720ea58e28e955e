"""Runs over HTTP: events, metrics, logs, checkpoints and the stream."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from app.jobs.schemas import MAX_RUNS
from app.runs import lifecycle
from app.runs.attempt_outcome import NewEvent
from app.settings import Settings
from app.storage.database import transaction
from app.storage.opening import get_store
from app.tables import Checkpoint, EventType, Run, RunStatus, Worker
from app.tables.base import utc_now
from tests.application import configured_app
from trainers.configs import Queue, StageKind


@pytest.fixture
def run(make_job: Callable[..., list[Run]], make_worker: Callable[..., Worker]) -> Run:
    """Return a run that a worker holds; its first event is the claim."""
    make_job(RunStatus.queued)
    worker = make_worker()
    with transaction() as session:
        claimed = lifecycle.claim(session, worker.id, [Queue.cpu], list(StageKind), 300)
    assert claimed is not None
    return claimed


class ApiServer:
    """The API on a real server."""

    def __init__(self) -> None:
        self.app = configured_app()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.uvicorn = uvicorn.Server(uvicorn.Config(self.app, log_config=None))
        self.thread = threading.Thread(target=self.uvicorn.run, args=([listener],))
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.02)

    def stop(self) -> None:
        self.app.state.stopping.set()
        self.uvicorn.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive(), "the server did not stop"


@pytest.fixture
def server(settings: Settings) -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.stop()


def record(run: Run, *facts: NewEvent, **values: Any) -> None:
    with transaction() as session:
        lifecycle.append_events(session, run.id, run.attempt, facts, values)


def in_an_hour() -> datetime:
    return utc_now() + timedelta(hours=1)


def finish(run: Run) -> None:
    with transaction() as session:
        lifecycle.move(session, run.id, RunStatus.succeeded)


def follow(server: ApiServer, run: Run, last_event_id: int | None = None) -> "Stream":
    return follow_path(server, f"runs/{run.id}", last_event_id)


def follow_path(server: ApiServer, path: str, last_event_id: int | str | None = None) -> "Stream":
    connection = http.client.HTTPConnection(server.address, timeout=60)
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    connection.request("GET", f"/api/v1/{path}/stream", headers=headers)
    return Stream(connection, connection.getresponse())


class Stream:
    """A client of server-sent events over a socket."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self.connection = connection
        self.response = response

    def frames(self) -> Iterator[dict[str, str]]:
        frame: dict[str, str] = {}
        while line := self.response.readline().decode():
            if line == "\n":
                yield frame
                frame = {}
            elif not line.startswith(":"):
                name, _, value = line.rstrip("\n").partition(": ")
                frame[name] = value

    def leave(self) -> None:
        self.response.close()
        self.connection.close()


def test_events_are_listed_in_order_and_by_type(client: TestClient, run: Run) -> None:
    record(run, *(NewEvent(EventType.metrics, {"loss": 1 / step}, step) for step in range(1, 6)))
    path = f"/api/v1/runs/{run.id}"
    page = client.get(f"{path}/events", params={"limit": 4}).json()
    rest = client.get(f"{path}/events", params={"limit": 4, "after": page["next"]}).json()
    assert [event["seq"] for event in page["items"] + rest["items"]] == [1, 2, 3, 4, 5, 6]
    assert rest["next"] is None
    assert len(client.get(f"{path}/events", params={"type": ["status"]}).json()["items"]) == 1
    assert client.get(f"{path}/metrics").json()["items"][1]["values"] == {"loss": 0.5}


def test_log_lines_are_listed_and_the_whole_log_can_be_downloaded_once_published(
    client: TestClient, run: Run, tmp_path: Path
) -> None:
    path, whole = f"/api/v1/runs/{run.id}/logs", f"/api/v1/runs/{run.id}/files/log.txt"
    record(run, NewEvent(EventType.log, {"lines": ["one", "two"]}))
    assert client.get(path).json()["items"][0]["lines"] == ["one", "two"]
    assert client.get(whole).json()["error"]["code"] == "file_not_published"
    (tmp_path / "log.txt").write_text("one\ntwo\nthree\n")
    get_store().publish_file(tmp_path / "log.txt", "runs/x/1/log.txt")
    record(run, log_artifact="runs/x/1/log.txt")
    assert client.get(whole).text == "one\ntwo\nthree\n"


def test_checkpoints_are_listed_newest_first(client: TestClient, run: Run) -> None:
    with transaction() as session:
        for step in (1, 2, 3):
            session.add(
                Checkpoint(run_id=run.id, attempt=1, step=step, artifact="a", sha256="b", size_bytes=2)
            )
            session.flush()
            time.sleep(0.002)
    page = client.get(f"/api/v1/runs/{run.id}/checkpoints", params={"limit": 2}).json()
    assert [item["step"] for item in page["items"]] == [3, 2] and page["next"] == page["items"][1]["id"]


def test_a_run_shows_its_progress_and_remaining_time(client: TestClient, run: Run) -> None:
    record(run, step=25, total_steps=100, seconds_per_step=2.0)
    shown = client.get(f"/api/v1/runs/{run.id}").json()
    assert (shown["progress"], shown["eta_seconds"], shown["waiting_for"]) == (0.25, 150.0, None)


def test_a_stream_contains_past_and_new_events_and_ends_with_the_run(server: ApiServer, run: Run) -> None:
    stream = follow(server, run)
    frames = stream.frames()
    assert next(frames)["event"] == "status"
    record(run, NewEvent(EventType.metrics, {"loss": 1.0}, 1))
    metrics = next(frames)
    assert (metrics["id"], json.loads(metrics["data"])["data"]) == ("2", {"loss": 1.0})
    finish(run)
    assert [frame["event"] for frame in frames] == ["status", "end"]
    stream.leave()


def test_a_client_that_reconnects_receives_each_event_once(server: ApiServer, run: Run) -> None:
    record(run, *(NewEvent(EventType.log, {"lines": [str(number)]}) for number in range(5)))
    before = follow(server, run)
    seen = [int(frame["id"]) for frame, _ in zip(before.frames(), range(3), strict=False)]
    before.leave()
    record(run, NewEvent(EventType.log, {"lines": ["while away"]}))
    finish(run)
    after = follow(server, run, last_event_id=seen[-1])
    seen += [int(frame["id"]) for frame in after.frames() if "id" in frame]
    after.leave()
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_open_stream_ends_when_the_service_stops(server: ApiServer, run: Run) -> None:
    stream = follow(server, run)
    frames = stream.frames()
    assert next(frames)["event"] == "status"
    server.stop()
    assert list(frames) == []
    stream.leave()


def test_the_stream_of_an_unknown_run_is_a_404(client: TestClient) -> None:
    response = client.get("/api/v1/runs/run_none/stream")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "run_not_found")


def test_the_stream_of_a_job_contains_the_events_of_all_its_runs(
    server: ApiServer, make_job: Callable[..., list[Run]]
) -> None:
    sft, evaluate = make_job(RunStatus.running, RunStatus.running, attempt=1, lease_expires_at=in_an_hour())
    stream = follow_path(server, f"jobs/{sft.job_id}")
    frames = stream.frames()
    record(sft, NewEvent(EventType.metrics, {"loss": 1.0}, 1))
    metrics = next(frames)
    shown = json.loads(metrics["data"])
    assert (shown["run_id"], shown["run"], shown["data"]) == (sft.id, sft.name, {"loss": 1.0})
    finish(sft)
    ended = next(frames)
    finish(evaluate)
    received = [(frame["event"], frame.get("id")) for frame in [metrics, ended, *frames]]
    stream.leave()
    assert received == [("metrics", "1.0"), ("status", "2.0"), ("status", "2.1"), ("end", None)]


def test_a_client_that_reconnects_to_a_job_receives_each_event_of_each_run_once(
    server: ApiServer, make_job: Callable[..., list[Run]]
) -> None:
    sft, evaluate = make_job(RunStatus.running, RunStatus.running, attempt=1, lease_expires_at=in_an_hour())
    for run in (sft, evaluate):
        record(run, *(NewEvent(EventType.log, {"lines": [f"{run.name} {n}"]}) for n in range(3)))
    before = follow_path(server, f"jobs/{sft.job_id}")
    first = [frame for frame, _ in zip(before.frames(), range(4), strict=False)]
    before.leave()
    # The first run continues after events of the second were sent, as after a retry.
    record(sft, NewEvent(EventType.log, {"lines": ["while away"]}))
    finish(sft)
    finish(evaluate)
    after = follow_path(server, f"jobs/{sft.job_id}", last_event_id=first[-1]["id"])
    rest = list(after.frames())
    after.leave()
    events = [json.loads(frame["data"]) for frame in first + rest if "id" in frame]
    assert [event["seq"] for event in events if event["run"] == sft.name] == [1, 2, 3, 4, 5]
    assert [event["seq"] for event in events if event["run"] == evaluate.name] == [1, 2, 3, 4]
    assert json.loads(rest[-1]["data"]) == {"status": "succeeded"}


@pytest.mark.parametrize("after", ["x", "1.", "-1", "1." * MAX_RUNS + "1", "9999999999"])
def test_a_position_that_no_event_has_is_refused(
    client: TestClient, make_job: Callable[..., list[Run]], after: str
) -> None:
    [run] = make_job(RunStatus.succeeded)
    response = client.get(f"/api/v1/jobs/{run.job_id}/stream", params={"after": after})
    assert (response.status_code, response.json()["error"]["fields"][0]["field"]) == (422, "after")


def test_the_stream_of_an_unknown_job_is_a_404(client: TestClient) -> None:
    response = client.get("/api/v1/jobs/job_none/stream")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found")
