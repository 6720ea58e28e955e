"""Webhooks: events of jobs, runs, deployments and OpenAI's objects, sent to addresses of the users."""
