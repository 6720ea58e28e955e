"""Metrics that a judge model decides by a rubric."""
