"""Routes: what gateways ask of the service."""
