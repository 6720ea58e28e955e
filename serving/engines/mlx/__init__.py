"""The engine `mlx`: models of mlx-lm with adapters of PEFT."""
