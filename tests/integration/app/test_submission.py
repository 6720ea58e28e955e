"""The work of a request that posts a job."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from app.storage.database import get_engine
from app.tables import Dataset
from tests.integration.app.test_jobs import SFT, spec


@pytest.fixture
def statements(client: TestClient) -> Iterator[list[str]]:
    """Return the statements that are executed from now on."""
    recorded: list[str] = []

    def record(_: object, __: object, sql: str, *___: object) -> None:
        recorded.append(sql)

    event.listen(get_engine(), "before_cursor_execute", record)
    yield recorded
    event.remove(get_engine(), "before_cursor_execute", record)


@pytest.mark.parametrize("stages", [[SFT], [SFT, SFT | {"name": "second"}]])
def test_a_post_inserts_into_each_table_once(
    client: TestClient,
    make_dataset: Callable[..., Dataset],
    statements: list[str],
    stages: list[dict[str, str]],
) -> None:
    make_dataset("rows")
    statements.clear()
    assert client.post("/api/v1/jobs", json=spec(*stages, labels={"team": "a"})).status_code == 201
    tables = [sql.split()[2] for sql in statements if sql.startswith("INSERT")]
    assert tables == ["job", "job_label", "run", *["run_need"] * (len(stages) - 1), "event"]
