"""Configs of stages that move a model from OpenAI to this service."""
