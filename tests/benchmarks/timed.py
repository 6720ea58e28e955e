"""Run a training program with the time and the tokens after each of its steps told on the standard output.

python -m tests.benchmarks.timed trainers.sft --config sft.yaml --run-dir out
"""

import runpy
import sys
import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS


class Tell(TrainerCallback):
    """Tells wall and CPU seconds, and the tokens of rows seen, after each step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What steps cost is the CPU's work of all threads; the wall holds what else the machine does.
        print("told", time.perf_counter(), time.process_time(), state.num_input_tokens_seen, flush=True)


if __name__ == "__main__":
    DEFAULT_CALLBACKS.append(Tell)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
