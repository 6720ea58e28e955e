"""The signing secrets of webhooks: what receivers verify, and how they are stored.

Oracles that share no code with the service: the package of the specification, and OpenAI's client.
"""

import json
import stat
from collections.abc import Iterator

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from sqlmodel import select
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError
from starlette.testclient import TestClient

from app.settings import Settings, get_settings
from app.storage.database import database_now, read_session, transaction
from app.tables import Webhook
from tests.webhook_receiver import ReceivedMessage, WebhookReceiver, receive_webhooks

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
URL = "/api/v1/webhooks"
OPENAI = OpenAI(api_key="unused")


@pytest.fixture
def receiver(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookReceiver]:
    monkeypatch.setenv("TUNESMITH_WEBHOOK_ALLOWED_HOSTS", '["127.0.0.1"]')
    get_settings.cache_clear()
    with receive_webhooks() as receiver:
        yield receiver


def create(client: TestClient, url: str) -> tuple[str, str]:
    body = {"name": "ci", "url": url, "event_types": ["fine_tuning.job.succeeded"]}
    created = client.post(URL, json=body).json()
    return f"{URL}/{created['id']}", created["secret"]


def send_sample(client: TestClient, path: str, receiver: WebhookReceiver) -> ReceivedMessage:
    client.post(f"{path}/test", json={"event_type": "fine_tuning.job.succeeded"}).raise_for_status()
    return receiver.received[-1]


def verifies(message: ReceivedMessage, secret: str) -> bool:
    """Return whether both oracles accept the message; they must agree."""
    headers = {name.lower(): value for name, value in message.headers.items()}
    try:
        Verifier(secret).verify(message.body, headers)
    except WebhookVerificationError:
        with pytest.raises(InvalidWebhookSignatureError):
            OPENAI.webhooks.unwrap(message.body, headers, secret=secret)
        return False
    unwrapped = OPENAI.webhooks.unwrap(message.body, headers, secret=secret)
    return bool(unwrapped.to_dict() == json.loads(message.body))


@on_sqlite
def test_both_clients_accept_a_message_and_refuse_a_forged_one(
    receiver: WebhookReceiver, client: TestClient
) -> None:
    path, secret = create(client, receiver.url)
    _, other = create(client, receiver.url)
    message = send_sample(client, path, receiver)
    assert verifies(message, secret)
    assert not verifies(message, other)
    message.body = message.body.replace(b"succeeded", b"cancelled")
    assert not verifies(message, secret)


@on_sqlite
def test_a_rotated_secret_signs_together_with_the_previous_one_for_a_time(
    receiver: WebhookReceiver, client: TestClient
) -> None:
    path, old = create(client, receiver.url)
    new = client.post(f"{path}/rotate-secret", json={"keep_previous_hours": 1}).json()["secret"]
    message = send_sample(client, path, receiver)
    assert verifies(message, old) and verifies(message, new)
    with transaction() as session:
        session.scalars(select(Webhook)).one().previous_secret_expires_at = database_now(-1)  # type: ignore[assignment]
    message = send_sample(client, path, receiver)
    assert not verifies(message, old) and verifies(message, new)


@on_sqlite
def test_the_embedded_service_creates_a_key_file_that_only_its_user_can_read(
    receiver: WebhookReceiver, client: TestClient, settings: Settings
) -> None:
    _, secret = create(client, receiver.url)
    key = settings.data_dir / "encryption.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    stored = b"".join(file.read_bytes() for file in settings.data_dir.glob("tunesmith.db*"))
    assert secret.encode() not in stored and key.read_bytes() not in stored


def test_a_service_on_postgresql_without_a_key_refuses_with_the_remedy(
    client: TestClient, settings: Settings
) -> None:
    if settings.database_url.get_secret_value().startswith("sqlite"):
        return
    body = {"name": "x", "url": "https://example.com", "event_types": ["job.failed"]}
    refused = client.post(URL, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "encryption_key_missing")
    assert "openssl rand -base64 32" in refused.json()["error"]["hint"]
    with read_session() as session:
        assert session.scalars(select(Webhook)).all() == []


@on_sqlite
def test_keys_are_replaced_by_writing_the_new_one_first(
    receiver: WebhookReceiver, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [letter * 42 + "A=" for letter in "Bc"]
    monkeypatch.setenv("TUNESMITH_ENCRYPTION_KEY", keys[0])
    get_settings.cache_clear()
    path, secret = create(client, receiver.url)
    monkeypatch.setenv("TUNESMITH_ENCRYPTION_KEY", " ".join(reversed(keys)))
    get_settings.cache_clear()
    assert verifies(send_sample(client, path, receiver), secret)
    monkeypatch.setenv("TUNESMITH_ENCRYPTION_KEY", keys[1])
    get_settings.cache_clear()
    refused = client.post(f"{path}/test", json={"event_type": "job.failed"}).json()["error"]
    assert "encrypted with another key" in refused["message"]
