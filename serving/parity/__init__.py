"""Proof that what an engine serves is what was trained."""
