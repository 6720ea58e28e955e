"""Run by each Python process of a test before its program: PYTHONPATH names this folder."""

import gc
import sys

# A sixth of the start of a program with torch is collections of garbage among its modules, which stay.
gc.set_threshold(10_000)

# A fifth of it is that PEFT imports bitsandbytes, and TRL wandb, wherever they are installed. No program of a
# test quantizes with bitsandbytes (tests do, in their own process), and only the worker reports to W&B.
if any(argument.startswith(("trainers.", "serving.engines")) for argument in sys.orig_argv):
    for package in ("bitsandbytes", "wandb"):
        sys.modules[package] = None  # type: ignore[assignment]  # An import raises ModuleNotFoundError.
