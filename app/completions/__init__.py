"""Stored chat completions and responses, of deployments with `store_days`."""
