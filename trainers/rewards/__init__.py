"""Rewards of completions; text is parsed, never executed."""
