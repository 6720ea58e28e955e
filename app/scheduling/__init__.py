"""The queue, the sweeper, and what a process does while something is unavailable."""
