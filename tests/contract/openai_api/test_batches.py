"""OpenAI's Batch API, through its official client, with a worker in this process and a stand-in engine."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import Batch
from sqlalchemy import select, update
from sqlmodel import col
from starlette.testclient import TestClient

from app.keys import token_use
from app.scheduling.sweeper import sweep_once
from app.settings import Settings
from app.storage.database import database_now, read_session, transaction
from app.tables import ApiKey, Deployment, DeploymentStatus, Run, RunStatus, Scope
from app.tables import Batch as BatchRow
from serving.batch.files import CONTROL, STATE, Availability, BatchState, Control, write_replaced
from tests.conftest import ROOT
from tests.integration.app.test_webhook_outbox import list_events, make_webhook
from tests.services import free_port
from trainers.configs import EngineKind, Queue
from workers.batches.follower import BatchFollower
from workers.hosts.worker import WorkerContext, register_worker
from workers.runs.claim import claim_next
from workers.runs.execute import execute

CHATS = "/v1/chat/completions"
# Carries out the next run, and nothing else.
WORKER = """
from app.settings import get_settings
from trainers.configs import Queue
from workers.hosts.worker import register_worker
from workers.runs.claim import claim_next
from workers.runs.execute import execute
settings = get_settings()
settings.lease_seconds, settings.heartbeat_seconds = 60, 0.5
worker = register_worker(settings, [Queue.cpu], "there")
worker.leases.start()
claimed = claim_next(worker)
assert claimed is not None
execute(worker, claimed)
"""
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Yield the address of a stand-in engine, and the file of the requests that it has completed."""
    ledger = tmp_path_factory.mktemp("engine") / "ledger.jsonl"
    with running_engine(ledger) as address:
        yield address, ledger


@contextmanager
def running_engine(ledger: Path, seconds: float = 0.0) -> Iterator[str]:
    """Yield the address of a stand-in engine, which is killed in the end."""
    script, port = str(ROOT / "tests" / "batch_engine.py"), free_port()
    options = ["--ledger", str(ledger), "--port", str(port), "--seconds", str(seconds)]
    with subprocess.Popen([sys.executable, script, *options]) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.runs.execute.POLL_SECONDS", 0.05)
    monkeypatch.setattr("workers.batches.follower.CONTROL_SECONDS", 0.2)


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerContext]:
    """Yield a worker that starts the real program."""
    settings.lease_seconds, settings.heartbeat_seconds = 60, 0.5
    worker = register_worker(settings, [Queue.cpu], "here")
    worker.leases.start()
    yield worker
    worker.leases.stop()


def deploy(name: str, address: str | None, status: DeploymentStatus = DeploymentStatus.ready) -> str:
    """Insert a deployment whose engine is already there."""
    deployment = Deployment(
        name=name,
        base="starter",
        engine=EngineKind.hf,
        queue=Queue.cpu,
        status=status,
        address=address,
        upstream_model=f"upstream-{name}",
    )
    with transaction() as session:
        session.add(deployment)
    return deployment.id


def line(custom_id: str, text: str, model: str = "starter", url: str = CHATS) -> dict[str, Any]:
    contents: dict[str, dict[str, Any]] = {
        CHATS: {"messages": [{"role": "user", "content": text}]},
        "/v1/completions": {"prompt": text},
        "/v1/responses": {"input": text},
        "/v1/embeddings": {"input": text},
    }
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model, **contents[url]}}


def create(openai: OpenAI, lines: list[Any], url: str = CHATS, **fields: Any) -> Batch:
    content = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines)
    file = openai.files.create(file=("requests.jsonl", content.encode()), purpose="batch")
    return openai.batches.create(
        **{"input_file_id": file.id, "endpoint": url, "completion_window": "24h", **fields}
    )


def run_next(worker: WorkerContext) -> None:
    claimed = claim_next(worker)
    assert claimed is not None
    execute(worker, claimed)


def run_in_thread(worker: WorkerContext) -> threading.Thread:
    thread = threading.Thread(target=run_next, args=(worker,))
    thread.start()
    return thread


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


def counts(openai: OpenAI, batch_id: str) -> tuple[int, int, int]:
    found = openai.batches.retrieve(batch_id).request_counts
    assert found is not None
    return found.total, found.completed, found.failed


def read(openai: OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    rows = [json.loads(row) for row in openai.files.content(file_id).read().splitlines()]
    assert max(Counter(row["custom_id"] for row in rows).values()) == 1
    return {row["custom_id"]: row for row in rows}


def test_a_batch_is_completed_with_its_errors_in_a_file_of_their_own(
    openai: OpenAI, worker: WorkerContext, engine: tuple[str, Path]
) -> None:
    deploy("starter", engine[0])
    lines = [line("a", "text a"), line("b", "status 400"), line("c", "busy c"), line("d", "status 500")]
    lines.append(line("e", "x") | {"body": {"model": "starter", "colour": 1}})
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    batch = create(openai, lines, output_expires_after=expiry, metadata={"team": "maths"})
    assert (batch.object, batch.status, batch.request_counts and batch.request_counts.total) == (
        "batch",
        "validating",
        0,
    )
    assert batch.expires_at == batch.created_at + 24 * 3600
    run_next(worker)
    done = openai.batches.retrieve(batch.id)
    assert (done.status, done.errors, done.model) == ("completed", None, "starter")
    assert counts(openai, batch.id) == (5, 2, 3)
    assert done.usage is not None and (done.usage.input_tokens, done.usage.total_tokens) == (6, 10)
    assert done.in_progress_at and done.finalizing_at and done.completed_at and not done.failed_at
    output, errors = read(openai, done.output_file_id), read(openai, done.error_file_id)
    assert output.keys() == {"a", "c"} and errors.keys() == {"b", "d", "e"}
    assert output["a"]["response"]["status_code"] == 200 and output["a"]["error"] is None
    assert output["a"]["response"]["body"]["choices"][0]["message"]["content"] == "text a"
    assert output["a"]["response"]["body"]["model"] == "starter"
    assert output["a"]["response"]["request_id"] and output["a"]["id"].startswith("batch_req_")
    assert errors["b"]["response"]["body"]["error"]["code"] == "requested"
    assert errors["e"]["response"]["body"]["error"]["param"] == "colour"
    assert [errors[name]["response"]["status_code"] for name in "bde"] == [400, 500, 400]
    file = openai.files.retrieve(str(done.output_file_id))
    assert (file.expires_at, file.purpose) == (file.created_at + 3600, "batch_output")
    assert done.metadata == {"team": "maths"}


@pytest.mark.parametrize("url", ["/v1/responses", "/v1/embeddings"])
def test_each_endpoint_has_batches(
    openai: OpenAI, worker: WorkerContext, engine: tuple[str, Path], url: str
) -> None:
    deploy("starter", engine[0])
    stateful = line("b", "text", url=url)
    stateful["body"]["previous_response_id"] = "resp_x"
    batch = create(openai, [line("a", "text", url=url), stateful], url)
    run_next(worker)
    done = openai.batches.retrieve(batch.id)
    assert (done.status, done.endpoint) == ("completed", url)
    assert done.usage is not None and done.usage.input_tokens == 3
    assert read(openai, done.output_file_id)["a"]["response"]["body"]["model"] == "starter"
    error = read(openai, done.error_file_id)["b"]["response"]
    assert (error["status_code"], error["body"]["error"]["param"]) == (400, "previous_response_id")


def test_a_file_with_faults_fails_with_their_lines(
    openai: OpenAI, worker: WorkerContext, engine: tuple[str, Path]
) -> None:
    deploy("starter", engine[0])
    good = line("a", "text")
    lines = [
        good,
        "{",
        good,
        good | {"custom_id": "b", "method": "GET"},
        good | {"custom_id": "c", "url": "/v1/completions"},
        line("d", "text", model="bananas"),
        {"custom_id": "e"},
        good | {"custom_id": "f", "body": {"model": "starter", "stream": True}},
    ]
    batch = create(openai, lines)
    run_next(worker)
    failed = openai.batches.retrieve(batch.id)
    assert failed.status == "failed" and failed.failed_at and failed.errors and failed.errors.data
    assert [(error.line, error.code, error.param) for error in failed.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_method", "method"),
        (5, "url_mismatch", "url"),
        (6, "model_not_found", "body.model"),
        (7, "missing_required_parameter", "method"),
        (8, "invalid_value", "body.stream"),
    ]
    assert failed.output_file_id is None and failed.in_progress_at is None


def find_key_id() -> str:
    with read_session() as session:
        return session.scalars(select(col(ApiKey.id))).one()


def count_tokens(key_id: str) -> int:
    with read_session() as session:
        return token_use.count_tokens_today(session, [key_id]).get(key_id, 0)


def test_a_batch_uses_the_models_of_its_key_and_counts_its_tokens(
    key_of: Callable[..., OpenAI], worker: WorkerContext, engine: tuple[str, Path]
) -> None:
    deploy("starter", engine[0])
    deploy("other", engine[0])
    limited = key_of(Scope.read, Scope.write, models=["start*"], tokens_per_day=1000)
    refused = create(limited, [line("a", "text", "other")])
    run_next(worker)
    failed = limited.batches.retrieve(refused.id)
    assert failed.status == "failed" and failed.errors and failed.errors.data
    assert [(error.code, error.param) for error in failed.errors.data] == [("model_not_found", "body.model")]
    batch = create(limited, [line("a", "text"), line("b", "text")])
    run_next(worker)
    assert limited.batches.retrieve(batch.id).status == "completed"
    assert count_tokens(find_key_id()) == 10


def test_a_batch_waits_while_its_key_has_no_tokens_left(
    key_of: Callable[..., OpenAI], engine: tuple[str, Path], tmp_path: Path
) -> None:
    deploy("starter", engine[0])
    batch = create(key_of(Scope.read, Scope.write, tokens_per_day=10), [line("a", "text")])
    write_replaced(tmp_path / CONTROL, Control())
    follower = BatchFollower(batch.id, tmp_path)

    def look(tokens: int) -> Availability:
        state = BatchState(total=9, completed=tokens, models=["starter"], validated=True)
        state.usage.input_tokens = tokens
        write_replaced(tmp_path / STATE, state)
        follower.poll()
        with transaction() as session:
            follower.save(session)
        follower._controlled_at = 0.0
        follower.poll()
        return Control.model_validate_json((tmp_path / CONTROL).read_bytes()).models["starter"].availability

    assert [look(tokens) for tokens in (0, 9, 10)] == ["ready", "ready", "waiting"]
    with transaction() as session:
        session.execute(update(ApiKey).values(models=["other"], tokens_per_day=None))
    assert look(10) == "missing"
    assert count_tokens(find_key_id()) == 10


def test_a_batch_that_no_worker_has_started_is_cancelled_at_once(openai: OpenAI) -> None:
    batch = create(openai, [line("a", "text")])
    make_webhook("batch.cancelled")
    cancelled = openai.batches.cancel(batch.id)
    assert cancelled.status == "cancelled" and cancelled.cancelling_at and cancelled.cancelled_at
    assert openai.batches.cancel(batch.id) == cancelled
    assert list_events() == [("batch.cancelled", {"id": batch.id})]


def test_a_cancelled_batch_keeps_what_was_completed(
    openai: OpenAI, worker: WorkerContext, engine: tuple[str, Path]
) -> None:
    deploy("starter", engine[0])
    batch = create(openai, [line("a", "text"), *(line(f"slow{n}", "slow") for n in range(200))])
    thread = run_in_thread(worker)
    until(lambda: counts(openai, batch.id)[1])
    assert openai.batches.retrieve(batch.id).status == "in_progress"
    assert openai.batches.cancel(batch.id).status == "cancelling"
    thread.join()
    done = openai.batches.retrieve(batch.id)
    assert done.status == "cancelled" and done.cancelled_at
    assert "a" in read(openai, done.output_file_id)
    with pytest.raises(NotFoundError) as missing:
        openai.batches.cancel("batch_x")
    assert missing.value.code == "batch_not_found"


def test_an_expired_batch_names_each_request_that_was_not_executed(
    openai: OpenAI, worker: WorkerContext, engine: tuple[str, Path]
) -> None:
    deploy("starter", engine[0])
    deploy("other", None, DeploymentStatus.starting)
    batch = create(openai, [line("a", "text"), line("b", "text", "other")])
    thread = run_in_thread(worker)
    until(lambda: counts(openai, batch.id)[1])
    with transaction() as session:
        session.execute(update(BatchRow).values(expires_at=database_now(-1)))
    thread.join()
    done = openai.batches.retrieve(batch.id)
    assert done.status == "expired" and done.expired_at
    assert read(openai, done.output_file_id).keys() == {"a"}
    error = read(openai, done.error_file_id)["b"]
    assert error["response"] is None and error["error"]["code"] == "batch_expired"
    with pytest.raises(BadRequestError) as finished:
        openai.batches.cancel(batch.id)
    assert finished.value.code == "batch_finished"


def test_a_batch_without_a_worker_expires(openai: OpenAI, settings: Settings, client: TestClient) -> None:
    batch = create(openai, [line("a", "text")])
    make_webhook("batch.expired", "batch.cancelled")
    with transaction() as session:
        session.execute(update(BatchRow).values(expires_at=database_now(-1)))
    sweep_once(settings)
    assert openai.batches.retrieve(batch.id).status == "expired"
    assert list_events() == [("batch.expired", {"id": batch.id})]
    job_id = batch.model_dump()["job"]
    assert client.delete(f"/api/v1/jobs/{job_id}").status_code == 204
    with pytest.raises(NotFoundError):
        openai.batches.retrieve(batch.id)


def test_a_sleeping_deployment_is_woken_and_kept_awake(
    openai: OpenAI, worker: WorkerContext, engine: tuple[str, Path]
) -> None:
    deployment_id = deploy("starter", None, DeploymentStatus.asleep)
    batch = create(openai, [line("a", "text")])
    thread = run_in_thread(worker)

    def find() -> Deployment:
        with read_session() as session:
            return session.get_one(Deployment, deployment_id)

    until(lambda: find().status is DeploymentStatus.queued)
    with transaction() as session:
        session.execute(update(Deployment).values(status=DeploymentStatus.ready, address=engine[0]))
    thread.join()
    assert openai.batches.retrieve(batch.id).status == "completed"
    assert find().last_used_at is not None


def test_requests_wait_for_an_engine_that_restarts_elsewhere(
    openai: OpenAI, worker: WorkerContext, tmp_path: Path
) -> None:
    lines = [line(f"r{n}", f"text {n}") for n in range(300)]
    with running_engine(tmp_path / "ledger.jsonl", seconds=0.2) as address:
        deploy("starter", address)
        batch = create(openai, lines)
        thread = run_in_thread(worker)
        until(lambda: counts(openai, batch.id)[1])
    with running_engine(tmp_path / "ledger.jsonl") as address:
        with transaction() as session:
            session.execute(update(Deployment).values(address=address))
        thread.join()
    done = openai.batches.retrieve(batch.id)
    assert done.status == "completed" and counts(openai, batch.id) == (300, 300, 0)
    assert read(openai, done.output_file_id).keys() == {each["custom_id"] for each in lines}


@pytest.mark.parametrize(
    "size", [300, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_no_request_is_lost_or_doubled_when_worker_and_program_are_killed(
    openai: OpenAI, worker: WorkerContext, tmp_path: Path, size: int
) -> None:
    ledger = tmp_path / "ledger.jsonl"
    # The second half is held back, so that the batch cannot end before its program is killed.
    texts = [f"text {n}" if n < size / 2 else f"held {n}" for n in range(size)]
    lines = [line(f"r{n}", "status 400" if n % 100 == 7 else text) for n, text in enumerate(texts)]
    with running_engine(ledger, seconds=0.1 if size < 1000 else 0.01) as address:
        deploy("starter", address)
        batch = create(openai, lines)
        with subprocess.Popen([sys.executable, "-c", WORKER], cwd=ROOT) as killed:
            until(lambda: sum(counts(openai, batch.id)[1:]) > size / 10, seconds=300)
            killed.kill()
        release_run(worker.settings)
        thread = run_in_thread(worker)
        until(lambda: sum(counts(openai, batch.id)[1:]) > size / 3, seconds=300)
        find_program().kill()
        thread.join()
        (tmp_path / "released").touch()
        release_run(worker.settings)
        run_next(worker)
    done = openai.batches.retrieve(batch.id)
    assert (done.status, counts(openai, batch.id)) == ("completed", (size, size - size // 100, size // 100))
    output, errors = read(openai, done.output_file_id), read(openai, done.error_file_id)
    assert output.keys() | errors.keys() == {each["custom_id"] for each in lines}
    assert not output.keys() & errors.keys()
    n_sent = len(ledger.read_text().splitlines())
    assert size - size // 100 <= n_sent <= size - size // 100 + 2 * 300


def find_program() -> psutil.Process:
    """Return the program that the worker in this process has started."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "serving.batch" in process.cmdline() and not process.children():
                return process
    raise AssertionError("the program is not running")


def release_run(settings: Settings) -> None:
    """Let the lease of the run end now, and let it be claimed again at once."""
    with transaction() as session:
        held = col(Run.status) == RunStatus.running
        session.execute(update(Run).where(held).values(lease_expires_at=database_now(-1)))
    sweep_once(settings)
    with transaction() as session:
        session.execute(update(Run).values(claimable_at=None))


def test_batches_are_listed_newest_first(openai: OpenAI) -> None:
    ids = [create(openai, [line("a", "text")]).id for _ in range(3)]
    assert [batch.id for batch in openai.batches.list(limit=2)] == ids[::-1]
    assert openai.batches.list(limit=1).has_more is True


def test_a_repeated_key_creates_no_second_batch(openai: OpenAI) -> None:
    file = openai.files.create(file=("requests.jsonl", b"{}"), purpose="batch")
    fields: Any = {"input_file_id": file.id, "endpoint": CHATS, "completion_window": "24h"}
    headers = {"Idempotency-Key": "k"}
    first = openai.batches.create(**fields, extra_headers=headers)
    assert openai.batches.create(**fields, extra_headers=headers).id == first.id
    assert len(openai.batches.list().data) == 1
    with pytest.raises(BadRequestError) as reused:
        openai.batches.create(**fields | {"metadata": {"a": "b"}}, extra_headers=headers)
    assert reused.value.code == "idempotency_key_reused"
    with pytest.raises(BadRequestError, match="unfinished batch"):
        openai.files.delete(file.id)


def test_an_invalid_parameter_is_named(openai: OpenAI) -> None:
    invalid: list[tuple[dict[str, Any], str]] = [
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/images/edits"}, "endpoint"),
        ({"input_file_id": "file-x"}, "input_file_id"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ]
    for fields, param in invalid:
        with pytest.raises(BadRequestError) as caught:
            create(openai, [line("a", "text")], **fields)
        assert caught.value.param == param


def test_only_this_api_creates_the_job_of_a_batch(openai: OpenAI, client: TestClient) -> None:
    batch = create(openai, [line("a", "text")])
    stages = [{"stage": "batch", "batch": batch.id}, {"stage": "batch", "input": "/etc/passwd"}]
    response = client.post("/api/v1/jobs", json={"name": "mine", "stages": stages[:1]})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid")
    assert client.post("/api/v1/jobs", json={"name": "mine", "stages": stages[1:]}).status_code == 422
