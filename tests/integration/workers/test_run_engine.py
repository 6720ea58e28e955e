"""The engine that a worker starts for a run: a real process that behaves like an engine, or badly."""

import json
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest
from sqlmodel import col, select

from app.runs import lifecycle
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
from app.tables import Event, EventType, Run, RunStatus
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import EngineKind, StageKind
from workers.hosts.worker import WorkerContext

Submit = Callable[..., str]
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ENGINE = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def respond(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"status": "ok", "choices": [{"text": "1"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = respond

port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
SUCCEED = """
config = json.loads((run_dir / "config.json").read_text())
write("result.json", json.dumps({"stage": "generate", "config": config}))
"""


@pytest.fixture
def generate(worker: WorkerContext, submit: Submit) -> Callable[[str, str], str]:
    """Queue a `generate` run with this engine and this program, and return its id."""

    def queue(engine: str, program: str) -> str:
        worker.settings.engine_commands = {EngineKind.hf: [sys.executable, "-c", engine]}
        base = str(worker.settings.data_dir / "models" / "base")
        run_id = submit(program, stage=StageKind.generate)
        with transaction() as session:
            run = session.get_one(Run, run_id)
            run.config = {"stage": "generate", "model": base, "dataset": run.config["dataset"]}
        return run_id

    return queue


def running_engines(worker: WorkerContext) -> list[psutil.Process]:
    """Return the engines of this test's models; other tests of this process may have engines of their own."""
    model = str(worker.settings.data_dir / "models" / "base")
    children = psutil.Process().children(recursive=True)
    return [child for child in children if {"--port", model} <= set(read_command(child))]


def read_command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def last_error(run_id: str) -> dict[str, str]:
    with read_session() as session:
        of_run = select(Event).where(Event.run_id == run_id, Event.type == EventType.status)
        events = session.exec(of_run.order_by(col(Event.seq))).all()
    error: dict[str, str] = events[-1].data["error"]
    return error


@on_sqlite
def test_a_program_gets_the_url_of_an_engine_that_is_stopped_after_it(
    worker: WorkerContext, generate: Callable[[str, str], str]
) -> None:
    run_id = generate(ENGINE, SUCCEED)
    assert execute_next(worker)
    run = row(run_id)
    assert run.status is RunStatus.succeeded and run.result is not None
    assert run.result["config"]["engine_url"].startswith("http://127.0.0.1:")
    assert run.result["config"]["engine_model"] == "base"
    assert running_engines(worker) == []
    assert get_store().exists(f"runs/{run_id}/1/engine.log")


@on_sqlite
def test_an_engine_that_ends_before_it_is_ready_is_a_failure_of_the_machine(
    worker: WorkerContext, generate: Callable[[str, str], str]
) -> None:
    run_id = generate("print('no such kernel'); raise SystemExit(3)", SUCCEED)
    assert execute_next(worker)
    assert (row(run_id).status, row(run_id).failure_count) == (RunStatus.queued, 1)
    assert last_error(run_id)["code"] == "engine_failed"
    assert "no such kernel" in last_error(run_id)["message"]
    assert get_store().exists(f"runs/{run_id}/1/engine.log")


@on_sqlite
def test_a_failure_that_the_program_reports_includes_the_end_of_the_engine_s_log(
    worker: WorkerContext, generate: Callable[[str, str], str]
) -> None:
    error = {"code": "engine_failed", "message": "It did not respond.", "hint": "h"}
    program = f"write('error.json', {json.dumps(error)!r})\nraise SystemExit(1)"
    run_id = generate("print('out of blocks', flush=True)\n" + ENGINE, program)
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.queued
    assert "out of blocks" in last_error(run_id)["message"]


@on_sqlite
@pytest.mark.parametrize(
    ("request_", "status"), [("cancelling", RunStatus.cancelled), ("pausing", RunStatus.paused)]
)
def test_a_run_that_is_stopped_while_its_engine_starts_leaves_no_engine(
    worker: WorkerContext, generate: Callable[[str, str], str], request_: str, status: RunStatus
) -> None:
    run_id = generate("import time; time.sleep(60)", SUCCEED)
    thread = threading.Thread(target=lambda: execute_next(worker))
    thread.start()
    deadline = time.monotonic() + 120
    while not running_engines(worker):
        assert time.monotonic() < deadline, "the engine did not start"
        time.sleep(0.05)
    with transaction() as session:
        lifecycle.move(session, run_id, RunStatus(request_))
    thread.join()
    assert row(run_id).status is status
    assert running_engines(worker) == []


@on_sqlite
def test_a_lost_lease_ends_the_engine(worker: WorkerContext, generate: Callable[[str, str], str]) -> None:
    run_id = generate(ENGINE, "time.sleep(60)")
    thread = threading.Thread(target=lambda: execute_next(worker))
    thread.start()
    deadline = time.monotonic() + 120
    while not running_engines(worker):
        assert time.monotonic() < deadline, "the engine did not start"
        time.sleep(0.05)
    with transaction() as session:
        # As the sweeper does once the lease has ended.
        lifecycle.move(session, run_id, RunStatus.queued)
    thread.join()
    assert running_engines(worker) == []
