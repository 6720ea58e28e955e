"""Fixtures of the attacks: a service on SQLite, with or without API keys."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.keys import service
from app.keys.schemas import KeyCreate
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Scope
from tests.integration.app.conftest import client, make_dataset, make_job, settings, sqlite

__all__ = ["client", "make_dataset", "make_job", "settings", "sqlite"]

Headers = dict[str, str]


@pytest.fixture
def database_url(sqlite: Path, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a migrated database without rows."""
    shutil.copy(sqlite, tmp_path / "tunesmith.db")
    yield f"sqlite:///{tmp_path / 'tunesmith.db'}"


@pytest.fixture
def make_key(settings: Settings) -> Callable[..., Headers]:
    """Return a function that creates an API key and returns the header that presents it."""

    def make(*scopes: Scope, **limits: Any) -> Headers:
        with transaction() as session:
            body = KeyCreate(name="test", scopes=list(scopes), **limits)
            _, secret = service.create_key(session, body)
        return {"Authorization": f"Bearer {secret}"}

    return make
