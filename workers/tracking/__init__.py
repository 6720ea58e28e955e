"""Tracking: what a run's program tells is sent on to MLflow, W&B and TensorBoard."""
