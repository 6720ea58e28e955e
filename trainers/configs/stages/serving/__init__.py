"""Configs of stages that change what is served, or send it requests."""
