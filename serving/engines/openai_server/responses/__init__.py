"""OpenAI's Responses API, for conversations that the client stores."""
