"""Training and adapters on MLX."""
