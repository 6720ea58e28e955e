"""A spot machine that its cloud takes back.

Goal: after the notice, the run is saved and continues on another host, well within the two minutes that AWS
gives. Method: real workers and the real watcher of notices; the metadata service and `systemctl`, which stops
a unit's process by SIGTERM, are stand-ins.
"""

import os
import time
from pathlib import Path

import pytest

from tests.clouds.spot_metadata import SpotMetadata
from tests.e2e.platform import Platform, sft_stage, wait_until
from workers.clouds.spot_notice import METADATA_VARIABLE, UNIT

STEPS = 300
EXACT = {"max_steps": STEPS, "save_every_steps": 20, "tuning": {"method": "lora", "dropout": 0.1}}
NOTICE_SECONDS = 120
SYSTEMCTL = """#!/bin/sh
[ "$*" = "stop {unit}" ] || exit 1
kill -TERM {pid}
while grep -qs "^State:.[^Z]" /proc/{pid}/status; do sleep 0.1; done
"""


@pytest.mark.slow
def test_the_run_of_a_spot_machine_that_is_taken_back_continues_on_another_host(
    team: Platform, tmp_path: Path
) -> None:
    spot = team.start_worker("spot")
    stub = tmp_path / "bin" / "systemctl"
    stub.parent.mkdir()
    stub.write_text(SYSTEMCTL.format(unit=UNIT, pid=spot.pid))
    stub.chmod(0o755)
    job = team.submit(sft_stage(**EXACT))
    run_id = team.run(job)["id"]
    with SpotMetadata() as metadata:
        variables = {METADATA_VARIABLE: metadata.url, "PATH": f"{stub.parent}:{os.environ['PATH']}"}
        watcher = team.start(["-m", "workers.clouds.spot_notice"], "watcher", **variables)
        wait_until(lambda: count_checkpoints(team, run_id) > 0, 180, "no checkpoint")
        saved, noticed = count_checkpoints(team, run_id), time.monotonic()
        metadata.has_notice = True
        assert watcher.wait(NOTICE_SECONDS) == 0
        assert spot.wait(NOTICE_SECONDS) == 0
        seconds = time.monotonic() - noticed
    run = team.run(job)
    print(f"released {seconds:.1f} s after the notice, with {count_checkpoints(team, run_id)} checkpoints")
    assert (run["status"], run["attempt"]) == ("queued", 1)
    assert seconds < NOTICE_SECONDS and count_checkpoints(team, run_id) > saved
    team.start_worker("other")
    assert team.wait_until_finished(job)["status"] == "succeeded"
    (resumed,) = team.events(run_id, "resumed")
    assert team.run(job)["attempt"] == 2 and resumed["data"]["exactness"] == "exact"
    assert len(team.losses(run_id)) == STEPS


def count_checkpoints(team: Platform, run_id: str) -> int:
    return len(team.get(f"/runs/{run_id}/checkpoints?limit=100")["items"])
