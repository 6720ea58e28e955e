"""Recipes that turn source data into training rows."""
