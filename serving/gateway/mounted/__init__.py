"""The gateway as part of another application: its ASGI interface and its OpenAPI document."""
