"""Training on completions of the model itself: its prompts, its samples and their rewards."""
