"""Kills an engine's processes when the program that started them is gone, however it has ended.

The kernel ends the engine itself with its parent, but vLLM's engine core and workers would go on without it.

    python -m trainers.training.on_policy.engine_watch MARKER    # Standard input is a pipe from the program.
"""

import signal
import sys

from trainers.runtime.process_tree import kill_processes


def main(marker: str) -> None:
    """Wait until the pipe is closed, and kill the processes with the marker."""
    # Ctrl-C in a terminal is for the program, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_processes(marker)


if __name__ == "__main__":
    main(sys.argv[1])
