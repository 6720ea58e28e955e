"""The OpenAI-compatible front that sends each request to the engine of its model."""
