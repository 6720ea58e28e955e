"""Completions of the rows of a dataset, for predictions and scores."""
