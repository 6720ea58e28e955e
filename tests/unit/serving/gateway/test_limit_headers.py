"""The headers that show the limits of a key."""

from typing import Any

from serving.gateway.key_limits.headers import make_limit_headers
from serving.gateway.key_limits.token_use import TokenRecorder
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.http.cross_site import OriginPolicy
from serving.http.errors import TokensOfDayUsed


async def report(reporter: str, rows: list[dict[str, Any]]) -> dict[str, int]:
    return {}


def test_a_page_of_an_allowed_origin_may_read_them() -> None:
    client = AuthorizedClient("key_a", requests_per_minute=1, tokens_per_day=1)
    refused = TokensOfDayUsed("", 1)
    headers = [
        *make_limit_headers(client, RateLimits(), TokenRecorder(report)),
        *refused.headers(),
    ]
    policy = OriginPolicy(["https://chat.example"])
    response = dict(policy.response_headers({b"origin": b"https://chat.example"}))
    exposed = response[b"access-control-expose-headers"].split(b", ")
    assert {name for name, _ in headers} - {b"content-type"} <= set(exposed)
