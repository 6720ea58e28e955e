"""The form of a new job, with its JSON beside it."""
