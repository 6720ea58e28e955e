"""Programs that generate text, and the commands that start them."""
