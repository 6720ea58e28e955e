"""The queue and the sweeper."""
