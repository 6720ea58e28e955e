"""What would waste a training run, found before it starts."""
