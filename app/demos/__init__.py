"""The demo, the worked cases and the example data."""
