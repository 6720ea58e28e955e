"""Training on completions that are known to be good or bad."""
