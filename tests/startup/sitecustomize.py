"""Run by each Python process of a test before its program: PYTHONPATH names this folder."""

import gc

# A sixth of the start of a program with torch is collections of garbage among its modules, which stay.
gc.set_threshold(10_000)
