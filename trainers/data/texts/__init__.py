"""Text of rows: its comparison as people read it, and marks of damage in it."""
