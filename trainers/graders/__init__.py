"""Graders: the score of a completion, by the configs in `trainers.configs.graders`."""
