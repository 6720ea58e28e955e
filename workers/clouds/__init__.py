"""Clients of the clouds that rent GPU machines out, and what a new machine runs first."""
