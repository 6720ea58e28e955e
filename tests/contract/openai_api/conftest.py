"""Fixtures: OpenAI's official client, connected to the service without a socket."""

from collections.abc import Iterator

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

# The fixtures of a migrated database of each kind.
from tests.integration.app.conftest import client, database_url, make_dataset, postgres, settings, sqlite

__all__ = ["client", "database_url", "make_dataset", "postgres", "settings", "sqlite"]


@pytest.fixture
def openai(client: TestClient) -> Iterator[OpenAI]:
    """Yield the official client of a service without keys; it repeats no request."""
    with OpenAI(
        base_url="http://127.0.0.1/v1", api_key="unused", http_client=client, max_retries=0
    ) as connected:
        yield connected
