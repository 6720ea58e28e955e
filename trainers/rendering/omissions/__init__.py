"""What a chat template leaves out of the rows that it renders."""
