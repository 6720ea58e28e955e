"""Routes with one target and with several."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.routes import Route, StaticRoutingTable, Target

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
