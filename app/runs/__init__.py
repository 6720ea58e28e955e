"""Runs: stages being carried out."""
