"""Implementations of attention: the choice for a model and a device, and torch's variable-length kernel."""
