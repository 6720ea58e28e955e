"""Runs a program in which one rank fails at its second step.

torch's launcher starts it in place of the program:
`-m tests.integration.trainers.distributed.failing trainers.sft …`. The variable `FAILURE` selects how the
rank in `FAILING_RANK` fails: `memory`, as if its device had no memory left, or `killed`.
"""

import os
import runpy
import signal
import sys
from typing import Any

import torch
from trl import SFTTrainer

if __name__ == "__main__":
    module, sys.argv = sys.argv[1], [sys.argv[1], *sys.argv[2:]]
    original = SFTTrainer.training_step

    def training_step(self: Any, *arguments: Any, **options: Any) -> Any:
        if os.environ["RANK"] == os.environ.get("FAILING_RANK", "1") and self.state.global_step == 1:
            if os.environ["FAILURE"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, *arguments, **options)

    SFTTrainer.training_step = training_step
    runpy.run_module(module, run_name="__main__", alter_sys=True)
