"""Downloads of stored files: whole, in part, and as archives of folders."""
