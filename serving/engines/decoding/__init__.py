"""Continuous batching for our own engines, independent of the library that runs the model."""
