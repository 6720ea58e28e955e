"""Runs on several hosts: how workers claim them as a group, and the members of an attempt."""
