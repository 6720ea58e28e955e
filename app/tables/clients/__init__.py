"""Tables about the clients of the service: their keys, and the webhooks that they have created."""
