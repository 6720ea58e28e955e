"""Runs an engine, and ends all of its processes when the program that needs it closes a pipe, or is gone.

The kernel can end the engine itself with its parent, but vLLM's engine core and workers would continue: they
are found by their marker, and because this process adopts them.

    python -m trainers.training.on_policy.engine_watch COMMAND…     # Standard input is the pipe.
"""

import os
import subprocess
import sys
import threading

from trainers.runtime.process_tree import MARKER, adopt_orphans, kill_processes

# vLLM drains, then stops its engine core and workers one after the other.
STOP_SECONDS = 30.0


def main(command: list[str]) -> int:
    """Run the engine until it ends or must end; return its exit status."""
    adopt_orphans()
    engine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_at_end_of_input, args=(engine,), daemon=True).start()
    status = engine.wait()
    kill_processes(os.environ[MARKER], ancestor=os.getpid())
    return abs(status)


def _stop_at_end_of_input(engine: "subprocess.Popen[bytes]") -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    engine.terminate()
    try:
        engine.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        engine.kill()


if __name__ == "__main__":
    # The thread may still read: a regular exit would wait for it, or abort.
    os._exit(main(sys.argv[1:]))
