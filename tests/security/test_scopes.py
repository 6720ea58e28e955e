"""A key allows the requests of its scopes and no others, on every route, until it is revoked."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.keys import service
from app.openai_api.application import create_openai_app
from app.storage.database import transaction
from app.tables import Scope
from app.web.application import list_page_routes
from tests.application import built_app
from tests.security.regression import Regression, ignore

PUBLIC = {"/healthz", "/readyz"}
# Pages without a login, and those that change only the visitor's own cookies.
PUBLIC_PAGES = ("/login", "/logout", "/preferences", "/assets/")
ANY_KEY = {"/api/v1/keys/self"}
# The other routes of the API need `read` for GET, and `write` for all other methods.
NEEDED_SCOPES = {
    "/api/v1/artifacts": Scope.worker,
    "/api/v1/keys": Scope.admin,
    "/api/v1/rescues": Scope.admin,
    "/api/v1/routes": Scope.inference,
    "/api/v1/deployments/{deployment_id}/wake": Scope.inference,
    "/api/v1/worker-credentials": Scope.worker,
    "/v1": Scope.inference,
    "/metrics": Scope.read,
}
# Machines that cost money, and what shows the credentials of all hosts.
OF_ADMINS = {
    ("POST", "/api/v1/hosts"),
    ("DELETE", "/api/v1/hosts/{host_id}"),
    ("POST", "/api/v1/hosts/{host_id}/settle"),
    ("POST", "/api/v1/hosts/take-over"),
    ("GET", "/api/v1/worker-credentials"),
}
ROUTES = [
    (method.upper(), path)
    for path, operations in built_app().openapi()["paths"].items()
    for method in operations
    if path not in PUBLIC
]


def needed_scope(method: str, path: str) -> Scope | None:
    """Return the scope that a route needs, by a table that does not come from the code."""
    if path in ANY_KEY:
        return None
    if (method, path) in OF_ADMINS:
        return Scope.admin
    for prefix, scope in NEEDED_SCOPES.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return scope
    return Scope.read if method in ("GET", "HEAD") else Scope.write


def send(client: TestClient, method: str, path: str, headers: dict[str, str]) -> int:
    """Return the status of a request whose ids name nothing and whose body is empty."""
    filled = path.replace("{", "none_").replace("}", "")
    body: dict[str, Any] = {"json": {}} if method in ("POST", "PUT", "PATCH") else {}
    return client.request(method, filled, headers=headers, **body).status_code


@pytest.fixture
def keys(make_key: Callable[..., dict[str, str]]) -> dict[Scope, dict[str, str]]:
    """Return the header of a key for each scope."""
    return {scope: make_key(scope) for scope in Scope}


def test_each_scope_opens_its_own_routes_only(client: TestClient, keys: dict[Scope, dict[str, str]]) -> None:
    wrong = []
    for method, path in ROUTES:
        needed = needed_scope(method, path)
        for scope, headers in keys.items():
            allowed = needed is None or scope in (needed, Scope.admin)
            if (send(client, method, path, headers) == 403) is allowed:
                wrong.append(f"{scope} on {method} {path}")
    assert len(ROUTES) > 40 and wrong == []


def test_no_route_works_without_a_key(client: TestClient, keys: dict[Scope, dict[str, str]]) -> None:
    for headers in ({}, {"Authorization": "Bearer ts_unknown"}):
        statuses = {f"{method} {path}": send(client, method, path, headers) for method, path in ROUTES}
        assert {route: status for route, status in statuses.items() if status != 401} == {}


def test_two_narrow_scopes_do_not_make_a_wide_one(
    client: TestClient, make_key: Callable[..., dict[str, str]]
) -> None:
    headers = make_key(Scope.read, Scope.write, Scope.inference)
    assert client.get("/api/v1/keys", headers=headers).status_code == 403
    created = client.post("/api/v1/keys", json={"name": "x", "scopes": ["admin"]}, headers=headers)
    assert created.status_code == 403


def test_the_key_of_a_host_opens_nothing_of_the_openai_api(
    client: TestClient, keys: dict[Scope, dict[str, str]]
) -> None:
    routes = [
        (method.upper(), f"/v1{path}")
        for path, operations in create_openai_app().openapi()["paths"].items()
        for method in operations
    ]
    opened = {route for route in routes if send(client, *route, keys[Scope.worker]) != 403}
    assert len(routes) > 40 and opened == set()


def test_a_revoked_key_opens_nothing(client: TestClient, keys: dict[Scope, dict[str, str]]) -> None:
    with transaction() as session:
        for key in service.list_all_keys(session):
            if key.scopes != [Scope.read]:
                service.revoke_key(session, key.id)
    for scope in set(Scope) - {Scope.read}:
        for method, path in ROUTES:
            assert send(client, method, path, keys[scope]) == 401, f"{scope} on {method} {path}"


def test_a_page_needs_a_login_with_its_scope(
    client: TestClient, make_key: Callable[..., dict[str, str]], keys: dict[Scope, dict[str, str]]
) -> None:
    client.headers["Accept"] = "text/html"
    paths = [
        (method, route.path.replace("{", "none_").replace("}", ""))
        for route in list_page_routes()
        for method in route.methods or ()
        if method != "HEAD" and not route.path.startswith(PUBLIC_PAGES) and route.path != "/"
    ]
    statuses = {client.request(method, path, follow_redirects=False).status_code for method, path in paths}
    assert len(paths) > 4 and statuses <= {303, 401, 403, 422}
    log_in(client, keys[Scope.read])
    changes = [path for method, path in paths if method not in ("GET", "HEAD")]
    csrf = {"X-CSRF-Token": find_csrf(client)}
    assert {client.post(path, headers=csrf).status_code for path in changes} == {403}


@pytest.mark.parametrize("scope", [Scope.write, Scope.inference, Scope.worker])
def test_a_key_without_read_opens_no_page(
    client: TestClient, keys: dict[Scope, dict[str, str]], scope: Scope
) -> None:
    assert log_in(client, keys[scope]) == 403
    assert client.get("/jobs", follow_redirects=False).status_code in (303, 401)


def find_csrf(client: TestClient) -> str:
    found = re.search('name="csrf" content="([0-9a-f]+)"', client.get("/login").text)
    assert found is not None
    return found[1]


def log_in(client: TestClient, headers: dict[str, str]) -> int:
    """Log in at the pages with the key of a header, and return the status."""
    key = headers["Authorization"].removeprefix("Bearer ")
    fields = {"csrf": find_csrf(client), "key": key}
    return client.post("/login", data=fields, follow_redirects=False).status_code


REGRESSIONS = [
    Regression(
        "scopes are not compared",
        "app.http.auth:Caller.require",
        ignore,
        "test_each_scope_opens_its_own_routes_only",
    ),
    Regression(
        "a key with several scopes is an admin's",
        "app.http.auth:Caller.require",
        lambda caller, scope: ignore() if len(caller.scopes) > 1 else None,
        "test_two_narrow_scopes_do_not_make_a_wide_one",
    ),
    Regression(
        "a service with keys serves local requests without one",
        "app.http.auth:_is_locked",
        lambda _: False,
        "test_no_route_works_without_a_key",
    ),
    Regression(
        "a revocation is not stored",
        "app.keys.service:database_now",
        lambda: None,
        "test_a_revoked_key_opens_nothing",
    ),
]
