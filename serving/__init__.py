"""OpenAI-compatible text generation: engines, and the gateway in front of them."""
