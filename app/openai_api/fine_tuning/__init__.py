"""OpenAI's Fine-tuning API."""
