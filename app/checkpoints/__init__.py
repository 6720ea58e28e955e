"""Checkpoints of runs: their values and models, and what can be done with each of them."""
