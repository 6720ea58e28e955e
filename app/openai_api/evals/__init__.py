"""OpenAI's Evals API."""
