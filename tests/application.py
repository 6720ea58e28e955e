"""The application of the API, which takes tenths of a second to build: the tests of a process share it."""

from functools import cache

from fastapi import FastAPI

from app.main import configure_app, create_app


def configured_app() -> FastAPI:
    """Return the application with the settings of the test; an earlier test must have ended its lifespan."""
    app = built_app()
    configure_app(app)
    return app


@cache
def built_app() -> FastAPI:
    """Return the application, for what does not depend on settings: its routes and its document."""
    return create_app()
