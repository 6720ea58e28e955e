"""A web page of another origin can neither change anything nor run a model, with or without a key.

Attacks: forms, links and `fetch` from foreign pages, with the headers that browsers add; lookalikes of the
service's own origin; and lists of allowed origins that are read too generously.
"""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.tables import Scope
from serving.http.cross_site import OriginPolicy, parse_origin
from tests.security.regression import Regression, ignore

FOREIGN_PAGES = [
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "null"},
    {"Origin": "null", "Sec-Fetch-Site": "none"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "http://127.0.0.1@evil.example"},
    {"Origin": "http://evil.example/127.0.0.1"},
    {"Origin": "file://"},
    {"Origin": "chrome-extension://abcdef"},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "Cross-Site"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Origin": "http://evil.example", "Referer": "http://127.0.0.1/docs"},
]
ROW = b'{"prompt": "1 + 1 =", "completion": "3"}\n'


@pytest.mark.parametrize("page", FOREIGN_PAGES)
def test_a_foreign_page_cannot_replace_a_dataset(client: TestClient, page: dict[str, str]) -> None:
    file = {"file": ("arithmetic-train.jsonl", ROW)}
    refused = client.post("/api/v1/datasets", data={"name": "arithmetic-train"}, files=file, headers=page)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site_request")
    assert client.get("/api/v1/datasets").json()["items"] == []


@pytest.mark.parametrize("page", FOREIGN_PAGES)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/deployments/deployment_x/stop"),
        ("POST", "/api/v1/deployments/deployment_x/wake"),
        ("POST", "/api/v1/jobs/job_x/cancel"),
        ("POST", "/api/v1/routes/use"),
        ("POST", "/api/v1/keys"),
        ("DELETE", "/api/v1/jobs/job_x"),
        ("PUT", "/api/v1/aliases/prod"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
    ],
)
def test_a_foreign_page_reaches_no_handler(
    client: TestClient, method: str, path: str, page: dict[str, str]
) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = page | ({"Content-Type": content_type} if content_type else {})
        refused = client.request(method, path, headers=headers, content=b'{"model": "x", "messages": []}')
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site_request")


@pytest.mark.parametrize("page", FOREIGN_PAGES[:-2])
def test_a_foreign_page_reads_nothing(client: TestClient, page: dict[str, str]) -> None:
    for path in ("/api/v1/jobs", "/api/v1/keys/self", "/v1/models"):
        answer = client.get(path, headers=page)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_key_does_not_open_the_service_to_foreign_pages(
    client: TestClient, make_key: Callable[..., dict[str, str]]
) -> None:
    headers = make_key(Scope.admin)
    assert client.get("/api/v1/jobs", headers=headers).status_code == 200
    for page in FOREIGN_PAGES[:3]:
        assert client.get("/api/v1/jobs", headers=headers | page).status_code == 403


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_programs_and_pages_of_the_service_itself_are_served(
    client: TestClient, page: dict[str, str]
) -> None:
    assert client.get("/api/v1/jobs", headers=page).status_code == 200
    assert client.get("/v1/models", headers=page).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "http://*",
        "http://*.example",
        "example.com",
        "http://a@b",
        "http://a/b",
        "",
        "http://",
        "://a",
    ],
)
def test_an_allowed_origin_is_one_origin(origin: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        parse_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        b"https://chat.example.evil",
        b"http://chat.example",
        b"https://chat.example:8443",
        b"https://xchat.example",
    ],
)
def test_an_allowed_origin_allows_no_lookalike(origin: bytes) -> None:
    policy = OriginPolicy(["https://chat.example"])
    headers = {b"origin": origin, b"access-control-request-method": b"POST"}
    assert policy.preflight_headers(headers) is None
    assert b"access-control-allow-origin" not in dict(policy.response_headers(headers))
    assert b"access-control-allow-credentials" not in dict(
        policy.response_headers({b"origin": b"https://chat.example"})
    )


REGRESSIONS = [
    Regression(
        "pages are not checked",
        "serving.http.cross_site:OriginPolicy.check",
        ignore,
        "test_a_foreign_page_cannot_replace_a_dataset",
    ),
    Regression(
        "an origin that begins like the host is the service's own",
        "serving.http.cross_site:_is_own",
        lambda origin, host: origin.partition(b"://")[2].startswith(host),
        "test_a_foreign_page_reaches_no_handler",
    ),
    Regression(
        "every GET counts as a link",
        "serving.http.cross_site:_is_link",
        lambda method, headers: method == "GET",
        "test_a_foreign_page_reads_nothing",
    ),
    Regression(
        "a wildcard is an origin",
        "tests.security.test_cross_site:parse_origin",
        ignore,
        "test_an_allowed_origin_is_one_origin",
    ),
]
