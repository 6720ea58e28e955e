"""Authentication and authorization by API keys."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlmodel import select
from starlette.testclient import TestClient

from app.http.auth import hash_key
from app.keys import service
from app.keys.endpoints import CREATE_EXAMPLES
from app.keys.first_key import create_first_key
from app.keys.schemas import KeyCreate
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import ApiKey, Scope
from tests.application import configured_app

REQUESTS = {
    "read": ("GET", "/api/v1/jobs"),
    "write": ("POST", "/api/v1/jobs/job_none/cancel"),
    "inference": ("GET", "/v1/models"),
    "admin": ("GET", "/api/v1/keys"),
}


def make_key(*scopes: Scope) -> tuple[ApiKey, dict[str, str]]:
    with transaction() as session:
        key, secret = service.create_key(session, KeyCreate(name="test", scopes=list(scopes)))
    return key, {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_allows_its_requests_and_admin_allows_all(client: TestClient, scope: Scope) -> None:
    _, headers = make_key(scope)
    responses = {
        needed: client.request(*request, headers=headers).status_code for needed, request in REQUESTS.items()
    }
    refused = {needed for needed, status in responses.items() if status == 403}
    assert refused == (set() if scope is Scope.admin else set(REQUESTS) - {scope})


@pytest.mark.parametrize("request_", list(REQUESTS.values()))
def test_every_request_needs_a_key_once_one_exists(client: TestClient, request_: tuple[str, str]) -> None:
    make_key(Scope.read)
    for headers in ({}, {"Authorization": "Bearer ts_wrong"}, {"Authorization": "Basic x"}):
        response = client.request(*request_, headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


def test_a_revoked_key_is_rejected_at_the_next_request(client: TestClient) -> None:
    key, headers = make_key(Scope.read)
    _, admin = make_key(Scope.admin)
    assert client.get("/api/v1/jobs", headers=headers).status_code == 200
    revoked = client.delete(f"/api/v1/keys/{key.id}", headers=admin)
    assert revoked.json()["revoked_at"] is not None
    assert client.get("/api/v1/jobs", headers=headers).status_code == 401


def test_docs_and_health_need_no_key(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.health.LIMIT_SECONDS", 60.0)
    make_key(Scope.read)
    paths = ("/docs", "/openapi.json", "/healthz", "/readyz", "/metrics")
    assert [client.get(path).status_code for path in paths] == [200, 200, 200, 200, 401]


def test_dns_rebinding_is_rejected_on_a_service_without_keys(client: TestClient) -> None:
    for host, status in [("localhost:8000", 200), ("[::1]:8000", 200), ("evil.example", 403)]:
        assert client.get("/api/v1/jobs", headers={"Host": host}).status_code == status
        assert client.get("/v1/models", headers={"Host": host}).status_code == status


def test_other_machines_are_rejected_on_a_service_without_keys(settings: Settings) -> None:
    """The last key of a public service can be revoked while the service runs."""
    with TestClient(configured_app(), base_url="http://127.0.0.1", client=("10.0.0.7", 50000)) as remote:
        assert [remote.get(path).status_code for path in ("/api/v1/jobs", "/v1/models")] == [403, 403]


def test_a_key_is_ignored_on_a_service_without_keys(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Authorization": "Bearer unused"}).status_code == 200


def test_the_first_key_created_over_http_must_have_the_scope_admin(client: TestClient) -> None:
    refused = client.post("/api/v1/keys", json={"name": "me", "scopes": ["read", "write"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "first_key_must_be_admin")
    created = client.post(
        "/api/v1/keys", json={"name": "me", "scopes": ["admin"], "lock_service": True}
    ).json()
    headers = {"Authorization": f"Bearer {created['key']}"}
    body = {"name": "you", "scopes": ["read"]}
    assert client.post("/api/v1/keys", json=body, headers=headers).status_code == 201


def test_the_first_key_needs_a_confirmation_since_it_locks_the_service(client: TestClient) -> None:
    """One click in Swagger UI sends an example as it is."""
    for example in CREATE_EXAMPLES.values():
        refused = client.post("/api/v1/keys", json=example["value"])
        assert refused.status_code == 409 and client.get("/api/v1/keys").json()["items"] == []
    body = {"name": "me", "scopes": ["admin"]}
    refused = client.post("/api/v1/keys", json=body).json()["error"]
    assert refused["code"] == "first_key_not_confirmed" and '"lock_service": true' in refused["hint"]
    first = client.post("/api/v1/keys", json=body | {"lock_service": True}).json()
    assert "click Authorize" in first["notice"]
    second = client.post("/api/v1/keys", json=body, headers={"Authorization": f"Bearer {first['key']}"})
    assert (second.status_code, second.json()["notice"]) == (201, None)


def test_a_secret_is_returned_once_and_stored_as_a_hash(client: TestClient) -> None:
    created = client.post(
        "/api/v1/keys", json={"name": "me", "scopes": ["admin"], "lock_service": True}
    ).json()
    headers = {"Authorization": f"Bearer {created['key']}"}
    assert created["key"] not in client.get("/api/v1/keys", headers=headers).text
    with read_session() as session:
        (stored,) = session.exec(select(ApiKey)).all()
    assert stored.sha256 == hash_key(created["key"]) and created["key"] not in stored.model_dump_json()


def test_a_key_with_an_older_name_of_a_model_is_shown_and_used(client: TestClient) -> None:
    key, headers = make_key(Scope.admin)
    with transaction() as session:
        session.get_one(ApiKey, key.id).models = ["a\u202eb"]
    (listed,) = client.get("/api/v1/keys", headers=headers).json()["items"]
    assert (
        listed["models"] == client.get("/api/v1/keys/self", headers=headers).json()["models"] == ["a\u202eb"]
    )


def test_the_last_use_is_recorded_at_most_once_a_minute(client: TestClient) -> None:
    key, headers = make_key(Scope.read)

    def send_and_get_last_use() -> datetime | None:
        client.get("/api/v1/jobs", headers=headers)
        with read_session() as session:
            return session.get_one(ApiKey, key.id).last_used_at

    first = send_and_get_last_use()
    assert first is not None and send_and_get_last_use() == first
    long_ago = datetime.now(UTC) - timedelta(seconds=61)
    with transaction() as session:
        session.get_one(ApiKey, key.id).last_used_at = long_ago
    later = send_and_get_last_use()
    assert later is not None and later > long_ago


def test_the_first_key_of_the_settings_is_created_once_and_not_again_after_it_was_revoked(
    settings: Settings,
) -> None:
    first = settings.model_copy(update={"first_admin_key": SecretStr(f"ts_{'k' * 40}")})
    for _ in range(2):
        create_first_key(first)
    with transaction() as session:
        (key,) = service.list_all_keys(session)
        service.revoke_key(session, key.id)
    create_first_key(first)
    with read_session() as session:
        assert [each.revoked_at is None for each in service.list_all_keys(session)] == [False]


def test_services_that_start_together_create_one_first_key(settings: Settings) -> None:
    first = settings.model_copy(update={"first_admin_key": SecretStr(f"ts_{'k' * 40}")})
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(create_first_key, [first] * 4))
    with read_session() as session:
        assert len(list(service.list_all_keys(session))) == 1
