"""Config of the stage that runs the lm-eval harness, and of its tasks."""
