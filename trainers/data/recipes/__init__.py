"""Recipes that make training rows from source data."""
