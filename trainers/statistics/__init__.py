"""Intervals, paired tests and power: when one model is better than another."""
