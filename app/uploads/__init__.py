"""Uploads in parts: the noun behind OpenAI's Uploads API."""
