"""Comparison of a served model with the model as it was trained."""
