"""The gateway mounted in another ASGI application."""
