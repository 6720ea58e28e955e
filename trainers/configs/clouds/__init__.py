"""Configs of hosts that are launched in a cloud."""
