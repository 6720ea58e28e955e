"""Counts of the traffic that a promotion is decided on."""
