"""Access to an account at OpenAI: its fine-tuned models, their files, and their responses."""
