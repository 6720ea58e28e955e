"""Tracking: export of runs to MLflow, W&B and TensorBoard."""
