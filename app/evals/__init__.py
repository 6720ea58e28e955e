"""Evals in OpenAI's terms: definitions, and runs of them as jobs with one `evaluate` stage."""
