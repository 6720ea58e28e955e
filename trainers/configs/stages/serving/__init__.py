"""Configs of stages that change what is served."""
