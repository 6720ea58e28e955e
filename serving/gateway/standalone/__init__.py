"""The gateway as a service of its own: its server, its processes, and what it learns from the API."""
