"""Comparison of stored evaluations: their common rows, the values to compare, and what weakens the result."""
