"""Completions for the rows of a file."""
