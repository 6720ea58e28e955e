"""Installations for the tests with real processes, on both kinds of storage."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.e2e.platform import Platform
from tests.services import Redis, postgres_url, redis


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_url() as url:
        yield url


@pytest.fixture
def embedded(tmp_path: Path, starter: Path) -> Iterator[Platform]:
    """SQLite and the filesystem transport, with an API and the datasets `train` and `test`."""
    platform = Platform(tmp_path / "data", starter)
    yield from _with_api(platform)


@pytest.fixture
def broker() -> Iterator[Redis]:
    with redis("secret") as server:
        yield server


@pytest.fixture
def team(tmp_path: Path, starter: Path, postgres: str, broker: Redis) -> Iterator[Platform]:
    """PostgreSQL and Redis, with an API and the datasets `train` and `test`."""
    database = f"test_{tmp_path.name.replace('-', '_')}"[:60].lower()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{database}"')
    platform = Platform(
        tmp_path / "data",
        starter,
        TUNESMITH_DATABASE_URL=postgres.replace("/postgres", f"/{database}"),
        TUNESMITH_BROKER_URL=broker.url,
    )
    migrate = platform.start(["-m", "app", "migrate"], "migrate")
    assert migrate.wait(30) == 0, (platform.folder / "migrate.log").read_text()
    yield from _with_api(platform)


@pytest.fixture(params=["embedded", "team"])
def platform(request: pytest.FixtureRequest) -> Platform:
    """Both kinds of storage, one after the other."""
    found: Platform = request.getfixturevalue(request.param)
    return found


def _with_api(platform: Platform) -> Iterator[Platform]:
    try:
        platform.start_api()
        platform.upload_examples()
        yield platform
    finally:
        platform.stop()
