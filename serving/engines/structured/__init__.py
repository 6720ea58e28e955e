"""Completions that follow a grammar: JSON, JSON schemas and tool calls, for our own engines."""
