"""Checks before training: faults of data, settings and memory that would waste a run."""
