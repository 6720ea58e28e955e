"""Scores of completions against references, and intervals of scores."""
