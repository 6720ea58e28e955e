"""Artifact stores that are not a local disk: the operations that they have, and their errors."""
