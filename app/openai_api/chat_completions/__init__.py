"""OpenAI's stored chat completions; the gateway creates them."""
