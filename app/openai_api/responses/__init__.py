"""OpenAI's stored responses; the gateway creates them."""
