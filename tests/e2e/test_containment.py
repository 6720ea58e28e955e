"""Goal: no process of an attempt is alive when the next attempt of its run starts."""

import contextlib
import os
import signal

import psutil

from tests.e2e.platform import LONG, SHORT_LEASE, Platform, sft_stage, wait_until


def list_processes(run_id: str, attempt: int) -> list[psutil.Process]:
    """Return the running processes of an attempt, which all name its run directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if f"{run_id}/attempt-{attempt}" in command and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_no_rank_of_a_killed_worker_is_alive_when_the_next_attempt_starts(embedded: Platform) -> None:
    first = embedded.start_worker("first", **SHORT_LEASE)
    job = embedded.submit(sft_stage(devices=2, micro_batch_size=4, **LONG))
    run_id = embedded.run(job)["id"]
    wait_until(lambda: embedded.run(job)["step"] > 0, 240, "training does not begin")
    # The guard, torch's launcher, and two ranks; a process that starts another one is two for a moment.
    wait_until(lambda: len(list_processes(run_id, 1)) == 4, 60, lambda: f"{list_processes(run_id, 1)}")
    os.kill(first.pid, signal.SIGKILL)
    embedded.start_worker("second")
    wait_until(lambda: list_processes(run_id, 2) != [], 120, "the second attempt does not start")
    assert list_processes(run_id, 1) == []
    assert embedded.first_resumed_step(job) > 0
