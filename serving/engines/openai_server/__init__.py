"""The OpenAI-compatible HTTP server of our own engines, `hf` and `mlx`."""
