"""Dataset rows as token ids."""
