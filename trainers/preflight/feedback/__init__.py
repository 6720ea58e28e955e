"""Findings in labels and rewards, which show a stage the good completions."""
