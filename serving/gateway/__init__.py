"""The OpenAI-compatible gateway, which forwards each request to the engine of its model."""
