"""Several processes that serve one port: their start and end, their sockets, and their common metrics."""
