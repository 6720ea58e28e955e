"""Limits of API keys that outlast a process, and how responses show what is left of all limits."""
