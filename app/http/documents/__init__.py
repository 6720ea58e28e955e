"""What the two applications of the API, ours and OpenAI's, share: their options, and their documents."""
