"""OpenAI's Uploads API."""
