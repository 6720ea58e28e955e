"""What a worker needs of its host, checked before work depends on it, and how to fix what is wrong."""
