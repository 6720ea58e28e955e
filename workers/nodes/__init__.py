"""Runs on several hosts: the offers of this worker, and its part as the leader or as another node."""
