"""Run a training program and print the time and the token count after each step.

python -m tests.benchmarks.trainers.step_timer trainers.sft --config sft.yaml --run-dir out
"""

import runpy
import sys
import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS


class StepTimer(TrainerCallback):  # type: ignore[misc]
    """Prints wall seconds, CPU seconds and the tokens seen after each step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # CPU time covers all threads of this process; wall time also depends on other work on the machine.
        print("step", time.perf_counter(), time.process_time(), state.num_input_tokens_seen, flush=True)


if __name__ == "__main__":
    DEFAULT_CALLBACKS.append(StepTimer)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
