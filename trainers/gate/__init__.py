"""The gate: whether an evaluation is good enough for a job to continue."""
