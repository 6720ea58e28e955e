"""Installations of the product, on both kinds of storage."""

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest import make_once
from tests.e2e.platform import ROOT, Platform
from tests.services import RedisServer, postgres_url, redis

TIMEOUT_SECONDS = 600


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Use one process more than cores: these tests wait for leases, signals and other processes."""
    return (yield) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow a test more time than in other folders: it starts several programs on a busy machine."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def adapters(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return adapters of the starter; each gives other completions."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.e2e.make_adapters", starter, folder, *"abc"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    folder = make_once(tmp_path_factory, "adapters", make)
    return {name: folder / name for name in "abc"}


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a server with a migrated database, `template`, which tests copy."""
    with postgres_url() as url:
        create_database(url, "template")
        environment = os.environ | {
            "TUNESMITH_DATA_DIR": str(tmp_path_factory.mktemp("migrate")),
            "TUNESMITH_DATABASE_URL": url.replace("/postgres", "/template"),
        }
        subprocess.run([sys.executable, "-m", "app", "migrate"], cwd=ROOT, env=environment, check=True)
        yield url


@pytest.fixture
def embedded(tmp_path: Path, starter: Path) -> Iterator[Platform]:
    """Yield an installation on SQLite and the filesystem transport, with an API and two datasets."""
    with run_platform(Platform(tmp_path / "data", starter)) as platform:
        yield platform


@pytest.fixture(scope="module")
def shared(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Yield an installation like `embedded` with a worker, shared by the tests of a file."""
    with run_platform(Platform(tmp_path_factory.mktemp("shared") / "data", starter)) as platform:
        platform.start_worker()
        yield platform


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    with redis("secret") as server:
        yield server


@pytest.fixture
def team(tmp_path: Path, starter: Path, postgres: str, broker: RedisServer) -> Iterator[Platform]:
    """Yield an installation on PostgreSQL and Redis, with an API and two datasets."""
    database = f"test_{tmp_path.name.replace('-', '_')}"[:60].lower()
    create_database(postgres, database, "template")
    storage = {
        "TUNESMITH_DATABASE_URL": postgres.replace("/postgres", f"/{database}"),
        "TUNESMITH_BROKER_URL": broker.url,
    }
    with run_platform(Platform(tmp_path / "data", starter, **storage)) as platform:
        yield platform


@pytest.fixture(params=["embedded", "team"])
def platform(request: pytest.FixtureRequest) -> Platform:
    """Return an installation on each kind of storage in turn."""
    found: Platform = request.getfixturevalue(request.param)
    return found


@contextmanager
def run_platform(platform: Platform) -> Iterator[Platform]:
    """Start an API, upload the datasets `train` and `test`, and stop everything at the end."""
    try:
        platform.start_api()
        platform.upload_examples()
        yield platform
    finally:
        platform.stop()


def create_database(server: str, name: str, template: str = "template1") -> None:
    """Create a database as a copy of another one."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
