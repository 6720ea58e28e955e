"""The OpenAI-compatible HTTP side of our own engines, `hf` and `mlx`."""
