"""Findings in what tells a stage which completions are good: labels and rewards."""
