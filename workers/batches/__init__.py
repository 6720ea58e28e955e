"""What a worker does for the program of a batch: its input, the engines of its models, and its files."""
