"""Runs: the execution of stages."""
