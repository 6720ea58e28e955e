"""The metrics of runs: their points, and the values that summarize a curve."""
