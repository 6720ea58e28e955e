"""A message of the broker can delay work at most: it runs no code and ends no worker.

Attacks: messages that are pickled, of unknown tasks, forged, torn or huge, in the queue of a real worker.
"""

import base64
import json
import os
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import EncodeError

from app.scheduling.queue import NOTIFY_TASK, create_celery, get_celery
from app.settings import Settings
from tests.e2e.conftest import run_platform
from tests.e2e.platform import Platform, short_stage
from tests.security.regression import Regression


class Payload:
    """An object whose unpickling runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def platform(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with run_platform(Platform(tmp_path_factory.mktemp("broker") / "data", starter)) as platform:
        platform.start_worker()
        yield platform


def message(body: bytes, content_type: str, task: str = NOTIFY_TASK, **headers: Any) -> bytes:
    """Return a message in the form of the file system transport."""
    properties = {
        "correlation_id": str(uuid.uuid4()),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "cpu"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    fields = {
        "lang": "py",
        "task": task,
        "id": str(uuid.uuid4()),
        "argsrepr": "",
        "kwargsrepr": "",
        **headers,
    }
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": content_type,
        "headers": fields,
        "properties": properties,
    }
    return json.dumps(envelope).encode()


def hostile_messages(marker: Path) -> dict[str, bytes]:
    arguments = json.dumps([["cpu"], {}, {}]).encode()
    chord = {"chord": {"task": "os.system", "args": [f"touch {marker}"]}, "callbacks": None, "errbacks": None}
    return {
        "pickle": message(pickle.dumps(Payload(marker)), "application/x-python-serialize"),
        "pickle named as JSON": message(pickle.dumps(Payload(marker)), "application/json"),
        "yaml": message(b"!!python/object/apply:os.system ['x']", "application/x-yaml"),
        "unknown task": message(arguments, "application/json", "os.system"),
        "celery's own task": message(arguments, "application/json", "celery.backend_cleanup"),
        "forged chord": message(json.dumps([["cpu"], {}, chord]).encode(), "application/json"),
        "far in the future": message(arguments, "application/json", eta="2999-01-01T00:00:00+00:00"),
        "wrong arguments": message(b'[["cpu", 1, 2], {"x": 1}, {}]', "application/json"),
        "no arguments": message(b"null", "application/json"),
        "no JSON": b"garbage{{{",
        "a number": b"5",
        "nothing": b"",
        "deep": b"[" * 100_000,
    }


def test_hostile_messages_run_no_code_and_end_no_worker(platform: Platform, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    folder = platform.folder / "queue" / "messages"
    for i, content in enumerate(hostile_messages(marker).values()):
        part = folder / f"hostile{i}.part"
        part.write_bytes(content)
        part.rename(folder / f"{i}_hostile.cpu.msg")
    job = platform.wait_until_finished(platform.submit(short_stage()))
    assert job["status"] == "succeeded" and not marker.exists()
    worker = platform.processes[-1]
    assert worker.poll() is None and platform.find_worker(worker.pid)["alive"]


def test_the_service_accepts_and_sends_json_alone(settings: Settings) -> None:
    celery = create_celery(settings)
    assert celery.conf.accept_content == ["json"] and celery.conf.task_serializer == "json"
    with pytest.raises(EncodeError):
        celery.send_task(NOTIFY_TASK, args=[object()])
    assert not celery.conf.worker_enable_remote_control and celery.conf.task_ignore_result


def create_celery_with_pickle(settings: Settings) -> Celery:
    celery = get_celery()
    celery.conf.update(accept_content=["json", "pickle"], task_serializer="pickle")
    return celery


REGRESSIONS = [
    Regression(
        "other serializers are accepted",
        "tests.security.test_broker:create_celery",
        create_celery_with_pickle,
        "test_the_service_accepts_and_sends_json_alone",
    ),
]
