"""The state of engines in the gateway: their circuit breakers, and the details of their models."""
