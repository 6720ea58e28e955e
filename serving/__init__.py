"""OpenAI-compatible generation: engines that produce text and the gateway in front of them."""
