"""Credentials with which the worker of another host reaches the database and the broker."""
