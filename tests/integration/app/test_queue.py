"""The queue: what a broken broker may not break. Each test damages a real broker and uses it."""

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty

import pytest
from pydantic import SecretStr
from redis import Redis
from starlette.testclient import TestClient

from app.scheduling.incidents import list_problems
from app.scheduling.periodic import PeriodicThread
from app.scheduling.queue import NOTIFY_TASK, get_celery, get_notifier, get_notify_incident, notify
from app.scheduling.sweeper import create_sweeper
from app.settings import Settings
from app.tables import Run, RunStatus, Worker
from tests.services import redis
from trainers.configs import Queue

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
PREPARE = {"name": "job", "stages": [{"stage": "prepare", "dataset": "rows", "split": {"test": 1}}]}


@pytest.fixture
def messages(settings: Settings) -> Path:
    get_celery()
    return settings.data_dir / "queue" / "messages"


@pytest.fixture
def redis_client(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator["Redis"]:
    """Yield a client of the process's broker, which is a Redis server."""
    with redis("secret") as server:
        monkeypatch.setattr(settings, "broker_url", SecretStr(server.url))
        with Redis.from_url(server.url) as client:
            yield client


def receive(queue: Queue = Queue.cpu) -> str:
    """Return the task of the queue's next message, as a worker would receive it."""
    with get_celery().connection_for_read() as connection:
        channel = connection.default_channel
        channel._queue_bind(queue.value, queue.value, "", queue.value)
        return str(channel._get(queue.value)["headers"]["task"])


@on_sqlite
@pytest.mark.parametrize("content", ["", '[["cp', "garbage{{{", "5"])
def test_a_damaged_file_of_kombu_breaks_neither_sender_nor_receiver(
    settings: Settings, messages: Path, content: str
) -> None:
    control = settings.data_dir / "queue" / "control"
    control.mkdir()
    (control / "cpu.exchange").write_text(content)
    notify(Queue.cpu)
    assert receive() == NOTIFY_TASK
    assert list_problems() == []


@on_sqlite
@pytest.mark.parametrize("content", [b"", b"garbage{{{", b"5", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_message_is_deleted_and_the_next_one_delivered(
    messages: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (messages / "0.cpu.msg").write_bytes(content)
    notify(Queue.cpu)
    assert receive() == NOTIFY_TASK
    assert [record.message for record in caplog.records if "0.cpu.msg" in record.message] != []
    with pytest.raises(Empty):
        receive()


@on_sqlite
def test_a_queue_folder_that_vanished_is_created_again(messages: Path) -> None:
    shutil.rmtree(messages.parent)
    notify(Queue.cpu)
    assert receive() == NOTIFY_TASK


@on_sqlite
def test_a_job_is_accepted_while_its_queue_cannot_be_notified(
    client: TestClient, make_dataset: Callable[..., object], messages: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset("rows")
    shutil.rmtree(messages)
    messages.write_text("a file in place of the folder")
    assert [client.post("/api/v1/jobs", json=PREPARE).status_code for _ in range(3)] == [201, 201, 201]
    assert get_notifier().wait(60)
    failures = [record for record in caplog.records if record.message.startswith("notification failed")]
    assert len(failures) == 1 and str(messages) in failures[0].message
    assert [problem.partition(" ")[0] for problem in list_problems()] == ["notification:"]
    get_notify_incident().resolve()


@on_sqlite
def test_a_job_is_accepted_although_redis_refuses_the_notification(
    redis_client: "Redis", client: TestClient, make_dataset: Callable[..., object]
) -> None:
    make_dataset("rows")
    redis_client.set("cpu", "a key of the wrong type")
    assert client.post("/api/v1/jobs", json=PREPARE).status_code == 201
    assert get_notifier().wait(60)
    assert "WRONGTYPE" in get_notify_incident().describe()
    get_notify_incident().resolve()
    redis_client.delete("cpu")
    notify(Queue.cpu)
    assert redis_client.llen("cpu") == 1


@on_sqlite
def test_the_sweeper_survives_a_broken_queue_and_works_again(
    settings: Settings, messages: Path, make_job: Callable[..., list[Run]], make_worker: Callable[..., Worker]
) -> None:
    settings.sweep_seconds = settings.renotify_seconds = 0.05
    make_worker()
    make_job(RunStatus.queued)
    shutil.rmtree(messages)
    messages.write_text("a file in place of the folder")
    sweeper = create_sweeper(settings)
    sweeper.start()
    try:
        wait_for(lambda: list_problems() != [])
        messages.unlink()
        get_notify_incident().resolve()
        wait_for(lambda: messages.is_dir() and any(messages.iterdir()))
    finally:
        sweeper.stop()


def test_a_periodic_thread_survives_any_exception_and_reports_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failures = iter([ValueError("first"), KeyError("second"), MemoryError(), None])
    finished = threading.Event()

    def act() -> None:
        if (error := next(failures, None)) is not None:
            raise error
        finished.set()

    thread = PeriodicThread("counter", act, 0.01)
    thread.start()
    assert finished.wait(60)
    thread.stop()
    logged = [record.message for record in caplog.records if record.name == "app.scheduling.incidents"]
    assert [line.removeprefix("counter ") for line in logged] == [
        "failed: ValueError: first",
        "failed: KeyError: 'second'",
        "failed: MemoryError",
        "works again after 3 failures",
    ]
    assert list_problems() == []


def wait_for(condition: Callable[[], bool]) -> None:
    attempt = threading.Event()
    for _ in range(3000):
        if condition():
            return
        attempt.wait(0.02)
    raise AssertionError("the condition does not become true")
