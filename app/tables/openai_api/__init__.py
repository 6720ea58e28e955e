"""The tables of nouns that only OpenAI's API has."""
