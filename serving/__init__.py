"""OpenAI-compatible text generation: engines, and the gateway in front of them."""

from trainers import delay_collections

delay_collections()
