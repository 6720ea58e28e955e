"""Graders: the check of those that a request contains, and the run of one on a single completion."""
