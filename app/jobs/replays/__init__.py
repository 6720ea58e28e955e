"""Repeating a job, and what two jobs differ in."""
