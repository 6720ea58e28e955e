"""Evals, runs and output items that were exported from OpenAI as files, kept as finished history."""
