"""Fixtures: OpenAI's official client, connected to the service without a socket."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import update
from starlette.testclient import TestClient

from app.keys import service as keys
from app.keys.schemas import KeyCreate
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus, Scope
from tests.contract.openai_api.talking_engine import TalkingEngine

# The fixtures of a migrated database of each kind.
from tests.integration.app.conftest import client, database_url, make_dataset, postgres, settings, sqlite
from trainers.configs import EngineKind, Queue

__all__ = ["client", "database_url", "make_dataset", "postgres", "settings", "sqlite"]


@pytest.fixture
def openai(client: TestClient) -> Iterator[OpenAI]:
    """Yield the official client of a service without keys; it repeats no request."""
    with OpenAI(
        base_url="http://127.0.0.1/v1", api_key="unused", http_client=client, max_retries=0
    ) as connected:
        yield connected


@pytest.fixture(scope="module")
def talking_engine() -> Iterator[TalkingEngine]:
    """Yield the engine that the tests of a module share."""
    engine = TalkingEngine()
    yield engine
    engine.close()


@pytest.fixture
def engine(settings: Settings, talking_engine: TalkingEngine) -> TalkingEngine:
    """Return an engine with deployments that store answers for 30 days, named like its models."""
    with transaction() as session:
        for name in ("talk", "cut-talk"):
            session.add(
                Deployment(
                    name=name,
                    base="hub/base",
                    engine=EngineKind.hf,
                    queue=Queue.cpu,
                    status=DeploymentStatus.ready,
                    address=talking_engine.url,
                    store_days=30,
                )
            )
    return talking_engine


@pytest.fixture
def set_store_days(client: TestClient) -> Callable[[float], None]:
    """Return a function that changes the time of storage, and makes the gateway read it."""

    def change(days: float) -> None:
        with transaction() as session:
            session.execute(update(Deployment).values(store_days=days))
        client.app.state.gateway.gateway.routes._fresh_until = 0.0  # type: ignore[attr-defined]

    return change


@pytest.fixture
def key_of(openai: OpenAI) -> Callable[..., OpenAI]:
    """Return a function that creates a key with scopes, and returns a client with it."""

    def create(*scopes: Scope, **limits: Any) -> OpenAI:
        with transaction() as session:
            body = KeyCreate(name="test", scopes=list(scopes), **limits)
            _, secret = keys.create_key(session, body)
        return openai.with_options(api_key=secret)

    return create
