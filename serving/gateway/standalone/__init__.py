"""The gateway as a program of its own: HTTP server, processes, and clients of the service's API."""
