"""OpenAI's graders, run on one completion."""
