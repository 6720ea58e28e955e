"""Metrics of translations, and the cleaning of responses."""
