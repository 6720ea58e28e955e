"""Evaluations: the scores of models on datasets, their rows, reports and leaderboards."""
