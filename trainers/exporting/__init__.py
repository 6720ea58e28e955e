"""Formats of other programs: GGUF and MLX, each written, loaded again and compared."""
