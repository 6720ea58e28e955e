"""Goal: a rank ends when another has failed, even where it waits in C for a message that never comes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from trainers.runtime import run_dir as files

# Rank 0 sleeps in C: no signal handler of Python runs there. Rank 1 ends in the way of the argument.
RANK = """
import ctypes, os, signal, sys, time
from pathlib import Path
from trainers.runtime import run_dir as files
from trainers.runtime.errors import OutOfMemory
from trainers.runtime.program import _report_error
from trainers.runtime.ranks import RankWatch, current_rank

run_dir, end = Path(sys.argv[1]), sys.argv[2]
ranks = RankWatch(run_dir)
ranks.start()
signal.signal(signal.SIGTERM, lambda *_: None)
if current_rank() == 0:
    ctypes.CDLL(None).sleep(3 if end == "on purpose" else 120)
    sys.exit(0)
while len(list((run_dir / ".ranks").glob("*/*"))) < 2:
    time.sleep(0.02)
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "error":
    files.write_error(run_dir, OutOfMemory("The device ran out of memory."), 1)
if end == "fault":
    _report_error(run_dir, RuntimeError("a fault"), ranks)
ranks.leave()
"""


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        ("error", 1, "out_of_memory"),
        ("fault", 1, "internal_error"),
        ("killed", 1, "rank_lost"),
        ("on purpose", 0, None),
    ],
)
def test_a_rank_in_a_collective_operation_ends_with_the_other(
    end: str, status: int, code: str | None, tmp_path: Path
) -> None:
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path), end],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)},
        )
        for rank in (0, 1)
    )
    second.wait(110)
    assert first.wait(110) == status
    error = files.read_error(tmp_path)
    assert (error and error["code"]) == code
