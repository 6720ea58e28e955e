"""A host whose clock is wrong, which libfaketime simulates for one worker."""

import random
import signal
from pathlib import Path

from tests.chaos.faults.fault import TEAM, Fault
from tests.chaos.platforms import Platform

MAX_SHIFT_SECONDS = 7200
# Repairs of libfaketime, which Python loads at its start.
REPAIRS = Path(__file__).parents[1] / "shifted_clock"


def shift_clock(platform: Platform, choose: random.Random) -> bool:
    """Kill a worker; until its next end, its clock differs from that of the others by up to two hours."""
    worker, library = choose.choice(platform.workers), _find_library()
    assert library is not None
    shift = choose.randint(-MAX_SHIFT_SECONDS, MAX_SHIFT_SECONDS)
    # The monotonic clock, by which a process waits, is right on a host with a wrong date.
    variables = {"FAKETIME": f"{shift:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return worker.end(signal.SIGKILL, LD_PRELOAD=str(library), PYTHONPATH=str(REPAIRS), **variables)


def explain_missing_library(platform: Platform) -> str | None:
    """Explain that libfaketime is missing."""
    return None if _find_library() else "libfaketime is not installed (Debian: apt-get install faketime)"


FAULTS = [Fault("clock shifted", shift_clock, 3, TEAM, explain_missing=explain_missing_library)]


def _find_library() -> Path | None:
    return next(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"), None)
