"""Rescues: fine-tuned models at OpenAI that are trained again here, from the same files, and compared."""
