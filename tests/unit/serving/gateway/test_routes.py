"""Routes with one target and with several, and tables that load them again."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.routes import (
    MISS_REFRESH_SECONDS,
    TASKS,
    CachedRoutingTable,
    Route,
    StaticRoutingTable,
    Target,
    parse_route,
)
from serving.http.errors import EngineUnavailable
from trainers.configs.engines import EngineTask

NEW = Target("deployment_new", "http://127.0.0.1:1", "new", 1)
OLD = Target("deployment_old", "http://127.0.0.1:2", "old", 9)
ALIAS = Route("maths-prod", (NEW, OLD), datetime(2026, 11, 26, tzinfo=UTC))


def test_an_alias_distributes_its_requests_by_share() -> None:
    chosen = Counter(ALIAS.choose() for _ in range(5000))
    assert 0.07 < chosen[NEW] / 5000 < 0.13


def test_an_avoided_target_leaves_its_share_to_the_others() -> None:
    assert {ALIAS.choose({OLD}) for _ in range(20)} == {NEW}
    assert ALIAS.choose({OLD, NEW}) is None


def test_a_target_without_a_share_is_never_chosen() -> None:
    route = Route("x", (Target("a", "http://127.0.0.1:1", "a", 0), NEW), ALIAS.created_at)
    assert {route.choose() for _ in range(50)} == {NEW}


def test_a_routes_file_may_list_targets(tmp_path: Path) -> None:
    targets = [{"base_url": "http://127.0.0.1:1/", "share": 3}, {"base_url": "http://127.0.0.1:2"}]
    file = tmp_path / "routes.json"
    file.write_text(json.dumps([{"name": "prod", "targets": targets}]))
    route = StaticRoutingTable.from_file(file).find("prod")
    assert route is not None
    assert [(t.base_url, t.upstream_model, t.share) for t in route.targets] == [
        ("http://127.0.0.1:1", "prod", 3.0),
        ("http://127.0.0.1:2", "prod", 1.0),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x"}, "base_url"),
        ({"name": "x", "base_url": "127.0.0.1:1"}, "not an http URL"),
        ({"name": "x", "targets": []}, "'x' needs a target"),
        ({"name": "x", "targets": [{"base_url": "http://h", "share": -1}]}, "must be 0 or more"),
    ],
)
def test_a_route_without_a_usable_target_is_rejected(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    file = tmp_path / "routes.json"
    file.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=message):
        StaticRoutingTable.from_file(file)


class GrowingRoutingTable(CachedRoutingTable):
    """A table whose routes a test adds; each load takes a moment, as a query does."""

    def __init__(self) -> None:
        super().__init__()
        self.existing: list[Route] = []
        self.load_count = 0
        self.reachable = True

    async def load(self) -> list[Route]:
        self.load_count += 1
        if not self.reachable:
            raise OSError("unreachable")
        routes = list(self.existing)
        await asyncio.sleep(0.01)
        return routes


async def miss(table: CachedRoutingTable, name: str) -> Route | None:
    if table.find(name) is None:
        await table.refresh_for_miss()
    return table.find(name)


def test_a_name_that_exists_when_it_is_asked_for_is_found() -> None:
    async def run() -> None:
        table = GrowingRoutingTable()
        await table.refresh()
        table.existing.append(ALIAS)
        assert await miss(table, ALIAS.name) is ALIAS

    asyncio.run(run())


def test_a_name_added_during_a_load_is_found_by_the_next_one() -> None:
    async def run() -> None:
        table = GrowingRoutingTable()
        loading = asyncio.create_task(table.refresh())
        await asyncio.sleep(0)
        table.existing.append(ALIAS)
        assert await miss(table, ALIAS.name) is ALIAS
        await loading

    asyncio.run(run())


def test_many_misses_share_few_loads() -> None:
    async def run() -> float:
        table = GrowingRoutingTable()
        started = asyncio.get_running_loop().time()
        for _ in range(3):
            await asyncio.gather(*(miss(table, f"unknown-{i}") for i in range(100)))
        assert table.load_count == 3
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) > 2 * MISS_REFRESH_SECONDS


def test_a_name_is_not_called_unknown_while_the_routes_cannot_be_loaded() -> None:
    async def run() -> None:
        table = GrowingRoutingTable()
        table.existing.append(ALIAS)
        await table.refresh()
        table.reachable = False
        with pytest.raises(EngineUnavailable, match="unavailable"):
            await table.refresh_for_miss()
        assert table.find(ALIAS.name) is ALIAS

    asyncio.run(run())


def test_the_tasks_of_routes_are_those_of_engines() -> None:
    assert set(TASKS) == set(EngineTask)
    with pytest.raises(ValueError, match="has the task 'draw'"):
        parse_route({"name": "name", "base_url": "http://127.0.0.1:1", "task": "draw"})
