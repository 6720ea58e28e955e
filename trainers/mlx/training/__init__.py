"""The training loop of MLX, and what its programs share: batches, checkpoints, events, plans."""
