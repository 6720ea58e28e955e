"""Requests that are forwarded to an engine: its target, its response, and how that ends."""
