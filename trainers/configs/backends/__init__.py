"""The libraries that train a stage, and what each of them can do."""
