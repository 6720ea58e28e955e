"""Training and evaluation programs that know files, not services."""
