"""What a completion is worth: rewards that judge text without ever running it."""
