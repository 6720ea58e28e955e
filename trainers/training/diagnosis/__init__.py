"""What is wrong with a run: losses that diverge or are not finite, and weights that do not change."""
