"""Nobody uses the service from another machine without a key.

Attacks: a bind to a public address without a key, a request from another machine, a web page that rebinds its
name to 127.0.0.1, and odd spellings of a key and of a host.
"""

from collections.abc import Callable

import pytest
from sqlmodel import Session, col, select
from starlette.testclient import TestClient

from app.__main__ import main
from app.keys.service import HINT_CHARACTERS
from app.settings import Settings
from app.tables import ApiKey, Scope
from tests.application import configured_app
from tests.security.regression import Regression, accept

OPEN_PATHS = ("/api/v1/jobs", "/api/v1/keys", "/v1/models", "/metrics")
PUBLIC = ["0.0.0.0", "::", "10.0.0.7", "example.com", "127.0.0.1.example.com", "0", ""]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "[::2]",
    "127.0.0.1@evil.example",
    "localhost:8131@evil.example",
    "127.0.0.1:8131/?evil.example",
    "localhost#evil.example",
    "evil.example\\localhost",
    "",
]


@pytest.mark.parametrize("host", PUBLIC)
def test_a_service_without_keys_does_not_listen_on_a_public_address(
    settings: Settings, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr("app.__main__.serve", lambda host, *_, **__: served.append(host))
    with pytest.raises(SystemExit) as refused:
        main(["--host", host, "--no-worker"])
    assert "without an API key" in str(refused.value) and served == []


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize("address", ["10.0.0.7", "::ffff:10.0.0.7", "192.168.1.2", "fe80::1"])
def test_a_request_from_another_machine_is_refused(settings: Settings, path: str, address: str) -> None:
    with TestClient(configured_app(), base_url="http://127.0.0.1", client=(address, 50000)) as remote:
        assert remote.get(path).status_code == 403


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_rebound_name_is_refused(client: TestClient, path: str, host: str) -> None:
    assert client.get(path, headers={"Host": host}).status_code in (400, 403)


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize(
    "header", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via", "X-Forwarded-Proto"]
)
def test_a_request_through_a_proxy_is_refused(client: TestClient, path: str, header: str) -> None:
    """Its address is that of the proxy, which may be on this machine."""
    assert client.get(path, headers={header: "10.0.0.7"}).status_code == 403


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer ts_wrong",
        "Basic dHNfOnRz",
        "Bearer ts_' OR 1=1 --",
        "Bearer ts_%",
        "Bearer \xe4\xf6",
        f"Bearer ts_{'a' * 30_000}",
    ],
)
def test_only_an_existing_key_is_accepted(
    client: TestClient, make_key: Callable[..., object], path: str, authorization: str
) -> None:
    make_key(Scope.admin)
    headers = {b"authorization": authorization.encode("latin-1")} if authorization else {}
    assert client.get(path, headers=headers).status_code in (401, 431)


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_a_key_is_accepted_in_the_header_only_and_exactly_as_it_was_issued(
    client: TestClient, make_key: Callable[..., dict[str, str]], path: str
) -> None:
    headers = make_key(Scope.admin)
    secret = headers["Authorization"].removeprefix("Bearer ")
    for query in ({"key": secret}, {"api_key": secret}, {"authorization": secret}):
        assert client.get(path, params=query).status_code == 401
    for changed in (secret.lower(), secret.upper(), secret[:-1], f"{secret} x", secret.removeprefix("ts_")):
        if changed != secret:
            assert client.get(path, headers={"Authorization": f"Bearer {changed}"}).status_code == 401
    assert client.get(path, headers=headers).status_code == 200


def find_by_hint(session: Session, token: str) -> tuple[ApiKey, bool] | None:
    key = session.scalar(select(ApiKey).where(col(ApiKey.hint) == token[:HINT_CHARACTERS]))
    return (key, False) if key is not None else None


REGRESSIONS = [
    Regression(
        "a public address is taken for a loopback one",
        "app.__main__:is_loopback",
        accept,
        "test_a_service_without_keys_does_not_listen_on_a_public_address",
    ),
    Regression(
        "the client's address is not checked",
        "app.http.auth:is_local_request",
        accept,
        "test_a_request_from_another_machine_is_refused",
    ),
    Regression(
        "the Host header is not checked",
        "app.http.auth:is_local_request",
        accept,
        "test_a_rebound_name_is_refused",
    ),
    Regression(
        "a service with keys stays open",
        "app.http.auth:_is_locked",
        lambda _: False,
        "test_only_an_existing_key_is_accepted",
    ),
    Regression(
        "a key is recognized by its first characters",
        "app.http.auth:find_active_key",
        find_by_hint,
        "test_a_key_is_accepted_in_the_header_only_and_exactly_as_it_was_issued",
    ),
]
