"""Deployments that this worker holds, and the engine processes that they share."""
