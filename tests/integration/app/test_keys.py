"""API keys: who gets in where."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.http.auth import hash_key
from app.keys import service
from app.keys.schemas import KeyCreate
from app.main import create_app
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import ApiKey, Scope

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
def test_a_scope_opens_what_it_names_and_admin_opens_all(client: TestClient, scope: Scope) -> None:
    _, headers = make_key(scope)
    answers = {
        needed: client.request(*request, headers=headers).status_code for needed, request in REQUESTS.items()
    }
    refused = {needed for needed, status in answers.items() if status == 403}
    assert refused == (set() if scope is Scope.admin else set(REQUESTS) - {scope})


@pytest.mark.parametrize("request_", list(REQUESTS.values()))
def test_once_a_key_exists_nothing_is_open(client: TestClient, request_: tuple[str, str]) -> None:
    make_key(Scope.read)
    for headers in ({}, {"Authorization": "Bearer ts_wrong"}, {"Authorization": "Basic x"}):
        answer = client.request(*request_, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_revoked_key_is_refused_at_the_next_request(client: TestClient) -> None:
    key, headers = make_key(Scope.read)
    _, admin = make_key(Scope.admin)
    assert client.get("/api/v1/jobs", headers=headers).status_code == 200
    revoked = client.delete(f"/api/v1/keys/{key.id}", headers=admin)
    assert revoked.json()["revoked_at"] is not None
    assert client.get("/api/v1/jobs", headers=headers).status_code == 401


def test_docs_and_health_need_no_key(client: TestClient) -> None:
    make_key(Scope.read)
    paths = ("/docs", "/openapi.json", "/healthz", "/readyz", "/metrics")
    assert [client.get(path).status_code for path in paths] == [200, 200, 200, 200, 401]


def test_without_keys_a_page_that_rebinds_its_name_is_refused(client: TestClient) -> None:
    for host, status in [("localhost:8000", 200), ("[::1]:8000", 200), ("evil.example", 403)]:
        assert client.get("/api/v1/jobs", headers={"Host": host}).status_code == status
        assert client.get("/v1/models", headers={"Host": host}).status_code == status


def test_without_keys_the_network_is_refused(settings: Settings) -> None:
    """The last key of a public service may be revoked while it runs."""
    with TestClient(create_app(), base_url="http://127.0.0.1", client=("10.0.0.7", 50000)) as remote:
        assert [remote.get(path).status_code for path in ("/api/v1/jobs", "/v1/models")] == [403, 403]


def test_without_keys_a_client_that_always_sends_one_is_let_in(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Authorization": "Bearer unused"}).status_code == 200


def test_the_first_key_made_over_http_must_be_able_to_make_the_next(client: TestClient) -> None:
    refused = client.post("/api/v1/keys", json={"name": "me", "scopes": ["read", "write"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "first_key_must_be_admin")
    made = client.post("/api/v1/keys", json={"name": "me", "scopes": ["admin"]}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    body = {"name": "you", "scopes": ["read"]}
    assert client.post("/api/v1/keys", json=body, headers=headers).status_code == 201


def test_a_secret_is_shown_once_and_kept_only_as_a_hash(client: TestClient) -> None:
    made = client.post("/api/v1/keys", json={"name": "me", "scopes": ["admin"]}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert made["key"] not in client.get("/api/v1/keys", headers=headers).text
    with read_session() as session:
        (stored,) = session.exec(select(ApiKey)).all()
    assert stored.sha256 == hash_key(made["key"]) and made["key"] not in stored.model_dump_json()


def test_the_last_use_is_noted_at_most_once_a_minute(client: TestClient) -> None:
    key, headers = make_key(Scope.read)

    def used_after_a_request() -> datetime | None:
        client.get("/api/v1/jobs", headers=headers)
        with read_session() as session:
            return session.get_one(ApiKey, key.id).last_used_at

    first = used_after_a_request()
    assert first is not None and used_after_a_request() == first
    long_ago = datetime.now(UTC) - timedelta(seconds=61)
    with transaction() as session:
        session.get_one(ApiKey, key.id).last_used_at = long_ago
    later = used_after_a_request()
    assert later is not None and later > long_ago
