"""Webhook endpoints in OpenAI's shape."""
