"""The edge of the API: checks before any route sees a request."""
