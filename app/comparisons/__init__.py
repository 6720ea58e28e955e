"""Comparisons of stored evaluations, which a short run on a worker computes."""
