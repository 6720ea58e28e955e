"""Promotions: the `promote` stage, which this worker runs itself."""
