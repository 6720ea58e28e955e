"""Files with a purpose: the noun behind OpenAI's Files API."""
