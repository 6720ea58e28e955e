"""Worker processes, as they register and report themselves in the database."""
