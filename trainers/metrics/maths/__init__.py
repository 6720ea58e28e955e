"""Metrics of maths: the final answer of a solution, compared in several ways."""
