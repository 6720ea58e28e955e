"""A program like torch's launcher: its children and grandchildren are in sessions of their own.

    python -m tests.integration.workers.family FOLDER ROLE BOUND

Each process writes its id as a file into the folder, ignores SIGTERM and sleeps. With BOUND `yes`, each asks
to die with its parent, as a rank does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainers.runtime.process_tree import die_with_parent

BELOW = {"launcher": ["rank", "rank"], "rank": ["helper"], "helper": []}
N_PROCESSES = 5


def family_command(folder: Path, role: str = "launcher", *, bound: bool = False) -> Sequence[str]:
    module = "tests.integration.workers.family"
    return [sys.executable, "-m", module, str(folder), role, "yes" if bound else "no"]


def main(folder: Path, role: str, *, bound: bool) -> None:
    if bound:
        die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for below in BELOW[role]:
        subprocess.Popen(family_command(folder, below, bound=bound), start_new_session=True)
    (folder / f"{os.getpid()}-{role}").touch()
    time.sleep(120)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], bound=sys.argv[3] == "yes")
