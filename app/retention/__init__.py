"""Retention: what is removed after a time or above a size, and the collection of what no row names."""
