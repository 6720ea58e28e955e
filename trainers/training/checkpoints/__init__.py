"""Checkpoints of a training stage: when they are saved, and how."""
