"""OpenAI's client against a service that loses its responses: no job is created twice, and none is lost.

Method: the real service as a process. A lock on its database delays it past the client's timeout; in the slow
test it is killed while twenty clients create jobs.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from tests.integration.app.test_server import environment, serving
from tests.services import free_port

MODEL = "gpt-4o-mini"
ROW = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}
CONTENT = "".join(json.dumps(ROW) + "\n" for _ in range(12)).encode()


@pytest.fixture(autouse=True)
def _map_openai_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_OPENAI_MODELS", json.dumps({MODEL: "org/tiny"}))


def upload(client: OpenAI) -> str:
    return client.files.create(file=("rows.jsonl", CONTENT), purpose="fine-tune").id


def list_jobs(folder: Path) -> list[tuple[str, str]]:
    """Return the id and the suffix of every fine-tuning job, from the database."""
    with closing(sqlite3.connect(folder / "tunesmith.db")) as database:
        return database.execute("SELECT id, suffix FROM fine_tuning_job ORDER BY id").fetchall()


def test_a_client_that_times_out_and_repeats_gets_the_one_job(tmp_path: Path) -> None:
    with serving(tmp_path, "--no-worker") as (_, url):
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=20)
        file = upload(client)
        with closing(sqlite3.connect(tmp_path / "tunesmith.db", check_same_thread=False)) as database:
            database.execute("BEGIN IMMEDIATE")
            threading.Timer(2.0, database.rollback).start()
            job = client.with_options(timeout=0.8).fine_tuning.jobs.create(model=MODEL, training_file=file)
            time.sleep(1)  # Until requests that the client has given up would have created theirs.
        assert [job_id for job_id, _ in list_jobs(tmp_path)] == [job.id]


@pytest.mark.slow
def test_twenty_clients_and_three_kills_create_twenty_jobs(tmp_path: Path) -> None:
    port = free_port()
    with killed_service(tmp_path, port):
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=30)
        file = upload(client)

        def create(number: int) -> str:
            return client.fine_tuning.jobs.create(model=MODEL, training_file=file, suffix=f"n{number}").id

        with ThreadPoolExecutor(20) as pool:
            created = list(pool.map(create, range(60)))
    assert sorted(created) == [job_id for job_id, _ in list_jobs(tmp_path)]
    assert sorted(suffix for _, suffix in list_jobs(tmp_path)) == sorted(f"n{n}" for n in range(60))


@contextmanager
def killed_service(folder: Path, port: int) -> Iterator[None]:
    """Start the service, and kill it three times, each time while it works, until the block ends."""
    command = [sys.executable, "-m", "app", "--no-worker", "--port", str(port)]
    done = threading.Event()

    def start() -> "subprocess.Popen[bytes]":
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=log, stderr=log)

    def keep_up() -> None:
        for _ in range(3):
            before = len(list_jobs(folder)) if (folder / "tunesmith.db").exists() else 0
            while not done.wait(0.005) and len(list_jobs(folder)) < before + 5:
                pass
            os.kill(processes[-1].pid, signal.SIGKILL)
            processes[-1].wait()
            processes.append(start())

    processes = [start()]
    keeper = threading.Thread(target=keep_up)
    while not (folder / "tunesmith.db").exists() or not is_up(port):
        time.sleep(0.1)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        processes[-1].kill()
        processes[-1].wait()
    assert len(processes) == 4


def is_up(port: int) -> bool:
    try:
        OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0).files.list()
    except Exception:
        return False
    return True
