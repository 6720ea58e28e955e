"""Metrics for any task."""
