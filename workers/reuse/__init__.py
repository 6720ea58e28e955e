"""Runs whose output an equal one has already produced."""
