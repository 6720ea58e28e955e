"""Rows of training data: their formats, validation and conversion, without any ML package."""
