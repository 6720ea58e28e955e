"""Fixtures of the pages: a service on SQLite with or without keys, and a browser's way to send forms."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from app.keys import service
from app.keys.schemas import KeyCreate
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Scope
from tests.application import configured_app
from tests.integration.app.conftest import make_dataset, make_job, make_worker, settings, sqlite

__all__ = ["make_dataset", "make_job", "make_worker", "settings", "sqlite"]


@pytest.fixture
def database_url(sqlite: Path, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a migrated database without rows; the API's tests run the services on both kinds."""
    shutil.copy(sqlite, tmp_path / "tunesmith.db")
    yield f"sqlite:///{tmp_path / 'tunesmith.db'}"


class Browser:
    """A client that keeps cookies, accepts pages, and sends forms with the token of the page before."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        client.headers.update({"Accept": "text/html", "Sec-Fetch-Site": "same-origin"})

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """Return the response to a GET, without following a redirect."""
        return self.client.get(path, headers=headers, follow_redirects=False)

    def post(self, path: str, page: str = "/login", **fields: str) -> httpx2.Response:
        """Send a form of a page."""
        csrf = self.csrf(page)
        return self.client.post(path, data={"csrf": csrf, **fields}, follow_redirects=False)

    def csrf(self, page: str = "/login") -> str:
        """Return the token of the forms of a page."""
        shown = self.client.get(page, follow_redirects=True).text
        found = re.search('name="csrf" content="([0-9a-f]+)"', shown)
        assert found is not None, shown
        return found[1]


@pytest.fixture
def browser(settings: Settings) -> Iterator[Browser]:
    """Yield a browser on the machine of a service without keys."""
    with TestClient(configured_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        yield Browser(client)


@pytest.fixture
def make_secret(settings: Settings) -> Callable[..., str]:
    """Return a function that creates an API key with some scopes and returns it."""

    def make(*scopes: Scope) -> str:
        with transaction() as session:
            return service.create_key(session, KeyCreate(name="my key", scopes=list(scopes)))[1]

    return make
