"""Nothing is lost and nothing runs twice, whatever dies."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from tests import services
from tests.e2e.platform import (
    LONG,
    SHORT_LEASE,
    Platform,
    find_children,
    kill,
    list_children,
    sft_stage,
    short_stage,
    wait_until,
)

STEPS = 60
EXACT = {"max_steps": STEPS, "save_every_steps": 10, "tuning": {"method": "lora", "dropout": 0.1}}
# A worker that receives SIGTERM before Celery installs its handler.
SIGTERM_AT_JOIN = """
import os, signal
from workers import __main__ as worker_program

register = worker_program.register_worker

def register_and_terminate(*arguments):
    worker = register(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
    return worker

worker_program.register_worker = register_and_terminate
worker_program.program()
"""


def test_the_run_of_a_killed_worker_resumes_on_another_with_the_same_losses(team: Platform) -> None:
    undisturbed = team.submit(sft_stage(**EXACT))
    first = team.start_worker("first", **SHORT_LEASE)
    team.wait_until_finished(undisturbed)
    job = team.submit(sft_stage(**EXACT))
    run_id = team.run(job)["id"]
    saved = team.folder / "runs" / run_id / "attempt-1" / "checkpoints.jsonl"
    wait_until(lambda: find_children(first, "trainers.sft") != [], 120, "no program")
    program = find_children(first, "trainers.sft")[0]
    # The program is faster than the rest, and must not end before the kill.
    wait_until(saved.exists, 120, "no checkpoint", poll_seconds=0.005)
    program.suspend()
    wait_until(lambda: team.get(f"/runs/{run_id}/checkpoints")["items"] != [], 120, "it is not published")
    os.kill(first.pid, signal.SIGKILL)
    assert team.run(job)["status"] == "running"
    team.start_worker("second")
    assert team.wait_until_finished(job)["status"] == "succeeded"
    run = team.run(job)
    assert run["attempt"] == 2
    assert team.first_resumed_step(job) > 10, "the second attempt began from the first step"
    (resumed,) = team.events(run["id"], "resumed")
    assert (run["resume_guarantee"], resumed["data"]) == ({"exactness": "exact", "reasons": []},) * 2
    assert team.losses(run["id"]) == team.losses(team.run(undisturbed)["id"])
    assert len(team.losses(run["id"])) == STEPS


def freeze(platform: Platform, pid: int) -> None:
    """Suspend a process while it is not writing: on SQLite a suspended writer blocks all others."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        if "TUNESMITH_DATABASE_URL" in platform.environment:
            return
        database = sqlite3.connect(platform.folder / "tunesmith.db", timeout=1, isolation_level=None)
        try:
            database.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)
        finally:
            database.close()


def test_a_worker_that_was_suspended_past_its_lease_writes_nothing(platform: Platform) -> None:
    sleeper = platform.start_worker("sleeper", **SHORT_LEASE)
    job = platform.submit(sft_stage(**LONG))
    run_id = platform.run(job)["id"]
    wait_until(lambda: platform.run(job)["step"] > 0, 120, "training does not begin")
    programs = list_children(sleeper)
    freeze(platform, sleeper.pid)
    wait_until(
        lambda: not any(program.is_running() for program in programs[1:]),
        60,
        "its program outlived the lease",
    )
    platform.start_worker("other")
    wait_until(lambda: platform.run(job)["attempt"] == 2, 120, "no worker claimed the run")
    last = max(event["seq"] for event in platform.events(run_id) if event["attempt"] == 1)
    os.kill(sleeper.pid, signal.SIGCONT)
    log = platform.folder / "sleeper.log"
    wait_until(lambda: "another attempt holds the run" in log.read_text(), 120, "the sleeper does not notice")
    assert platform.run(job)["status"] == "running"
    assert platform.run(job)["attempt"] == 2
    assert max(event["seq"] for event in platform.events(run_id) if event["attempt"] == 1) == last


def test_emptied_and_restarted_broker_loses_no_run(team: Platform) -> None:
    job = team.submit(short_stage())
    with Redis.from_url(team.environment["TUNESMITH_BROKER_URL"]) as redis:
        wait_until(lambda: bool(redis.llen("cpu")), 60, "no notification is sent")
        redis.flushall()
    team.start_worker()
    assert team.wait_until_finished(job)["status"] == "succeeded"


def test_a_run_submitted_while_the_broker_is_down_is_executed_without_it(
    team: Platform, broker: services.RedisServer
) -> None:
    team.start_worker()
    team.wait_until_finished(team.submit(short_stage()))
    broker.stop()
    # The API fails to notify, and the worker looks into the database by itself.
    assert team.wait_until_finished(team.submit(short_stage()))["status"] == "succeeded"
    assert "notification failed" in (team.folder / "api.log").read_text()
    broker.start()
    assert team.wait_until_finished(team.submit(short_stage()))["status"] == "succeeded"


def test_emptied_folder_of_the_embedded_broker_loses_no_run(embedded: Platform) -> None:
    job = embedded.submit(short_stage())
    folder = embedded.folder / "queue" / "messages"
    wait_until(lambda: any(folder.glob("*.msg")), 60, "no notification is sent")
    for message in folder.glob("*.msg"):  # After two seconds the sweeper sends another.
        message.unlink()
    embedded.start_worker()
    assert embedded.wait_until_finished(job)["status"] == "succeeded"


# The real API, killed at the moment at which it would notify the queue.
KILLED_BEFORE_NOTIFICATION = """
import os, runpy, signal, sys
from app.scheduling.notifier import Notifier
Notifier.request = lambda self, queue: os.kill(os.getpid(), signal.SIGKILL)
sys.argv[0] = "app"
runpy.run_module("app", run_name="__main__")
"""


def test_an_api_killed_before_it_notifies_loses_no_run(platform: Platform, tmp_path: Path) -> None:
    kill(platform.processes[-1])
    doomed = platform.start_api(command=["-c", KILLED_BEFORE_NOTIFICATION])
    with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed"):
        platform.submit(short_stage())
    assert doomed.wait(60) == -signal.SIGKILL
    platform.start_api()
    job = platform.get("/jobs")["items"][0]["id"]
    assert platform.run(job)["status"] == "queued"
    platform.start_worker()
    assert platform.wait_until_finished(job)["status"] == "succeeded"


def test_a_worker_that_is_stopped_saves_a_checkpoint_and_releases_its_run(embedded: Platform) -> None:
    leaving = embedded.start_worker("leaving")
    job = embedded.submit(sft_stage(**{**LONG, "save_every_steps": 100_000}))
    wait_until(lambda: embedded.run(job)["step"] > 0, 120, "training does not begin")
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(60) == 0
    run = embedded.run(job)
    assert (run["status"], run["failure_count"]) == ("queued", 0)
    (saved,) = embedded.get(f"/runs/{run['id']}/checkpoints")["items"]
    embedded.start_worker("next")
    assert embedded.first_resumed_step(job) > saved["step"]


def test_a_worker_that_is_stopped_right_after_registration_exits_with_0(embedded: Platform) -> None:
    command = [sys.executable, "-c", SIGTERM_AT_JOIN, "--queue", "cpu"]
    leaving = subprocess.run(command, env=embedded.environment, capture_output=True, text=True, timeout=60)
    assert leaving.returncode == 0, leaving.stderr
    assert [worker["alive"] for worker in embedded.get("/workers")["items"]] == [False]


def test_a_worker_with_exit_with_stdin_ends_when_its_standard_input_closes(embedded: Platform) -> None:
    command = [sys.executable, "-m", "workers", "--queue", "cpu", "--exit-with-stdin"]
    log = embedded.folder / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=embedded.environment, stdout=output, stderr=output
        )
    # It is listed before it handles signals; a signal in between would kill it.
    wait_until(lambda: " ready." in log.read_text(), 120, "it does not join")
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(60) == 0
