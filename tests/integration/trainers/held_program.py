"""Runs a program that waits once it has logged a step, until its standard input ends.

A test that kills or stops a program would otherwise lose the race against the last step on a busy host:
`python -m tests.integration.trainers.held_program STEP trainers.sft …`.
"""

import runpy
import sys
from collections.abc import Mapping

from trainers.runtime.events import EventWriter


def hold_at(held_step: int) -> None:
    """Make the writer of events wait after the first metrics of the step or a later one."""
    write = EventWriter.write_metrics

    def write_and_wait(self: EventWriter, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        write(self, step, total_steps, values)
        if step >= held_step:
            # A signal is handled meanwhile, and the read is repeated.
            sys.stdin.buffer.read()

    EventWriter.write_metrics = write_and_wait  # type: ignore[method-assign]


if __name__ == "__main__":
    hold_at(int(sys.argv[1]))
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
