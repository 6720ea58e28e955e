"""Webhooks are delivered: signed, by one sender, again after failures, and with a record of each attempt.

Method: a receiver on this machine, which the operator has allowed; the sender is driven by hand.
"""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.retention.records import delete_records
from app.settings import Settings, get_settings
from app.storage.database import database_now, read_session, transaction
from app.tables import DeliveryStatus, Webhook, WebhookDelivery
from app.tables.base import utc_now
from app.webhooks import deliveries, sender
from app.webhooks.event_types import WebhookEventType
from app.webhooks.outbox import record_event
from app.webhooks.schemas import WebhookCreate
from app.webhooks.sender import WebhookSender
from app.webhooks.service import create_webhook
from app.webhooks.transport import PostResult
from tests.webhook_receiver import WebhookReceiver, receive_webhooks

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
URL = "/api/v1/webhooks"


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setenv("TUNESMITH_WEBHOOK_ALLOWED_HOSTS", '["127.0.0.1"]')
    monkeypatch.setenv("TUNESMITH_ENCRYPTION_KEY", "A" * 43 + "=")
    get_settings.cache_clear()


@pytest.fixture
def receiver(allowed: None) -> Iterator[WebhookReceiver]:
    with receive_webhooks() as receiver:
        yield receiver


def make(receiver: WebhookReceiver, *types: str) -> Webhook:
    names = [WebhookEventType(name) for name in types or ["batch.completed"]]
    with transaction() as session:
        body = WebhookCreate(name="test", url=receiver.url, event_types=names)
        return create_webhook(session, get_settings(), body)[0]


def record(object_id: str = "batch_1") -> None:
    with transaction() as session:
        record_event(session, WebhookEventType.batch_completed, object_id)


def poll() -> None:
    """Send all that is due now, and wait for the outcomes."""
    worker = WebhookSender(get_settings())
    worker.poll()
    for thread in worker._sending_threads():
        thread.join(30)


def only_delivery() -> WebhookDelivery:
    with read_session() as session:
        return session.scalars(select(WebhookDelivery)).one()


def wait_until_delivered() -> None:
    """Wait for the sender of a running service."""
    deadline = time.monotonic() + 60
    while only_delivery().status is not DeliveryStatus.delivered:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def make_due(**values: Any) -> None:
    with transaction() as session:
        due = {"next_attempt_at": database_now(-1), **values}
        session.execute(update(WebhookDelivery).values(due))


def test_a_failed_delivery_is_repeated_with_the_same_id_until_it_is_accepted(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Much longer than the test, which makes each repetition due by itself.
    monkeypatch.setattr(deliveries, "FIRST_RETRY_SECONDS", 3600.0)
    make(receiver)
    receiver.statuses = [500, 302]
    record()
    for _ in range(3):
        poll()
        poll()  # Not yet due again.
        make_due()
    poll()
    ids = {message.headers["webhook-id"] for message in receiver.received}
    delivery = only_delivery()
    assert (len(receiver.received), ids) == (3, {delivery.id})
    assert (delivery.status, delivery.attempt) == (DeliveryStatus.delivered, 3)
    assert [each["status_code"] for each in delivery.attempts] == [500, 302, 204]
    assert "redirects are not followed" in delivery.attempts[1]["error"]


def test_concurrent_senders_send_each_event_once(receiver: WebhookReceiver) -> None:
    make(receiver)
    for number in range(4):
        record(f"batch_{number}")
    senders = [WebhookSender(get_settings()) for _ in range(4)]
    for each in senders:
        each.poll()
    for each in senders:
        for thread in each._sending_threads():
            thread.join(30)
    sent = [json.loads(message.body)["data"]["id"] for message in receiver.received]
    assert sorted(sent) == [f"batch_{number}" for number in range(4)]


@on_sqlite
def test_a_sender_that_died_is_replaced_and_its_late_outcome_ignored(receiver: WebhookReceiver) -> None:
    make(receiver)
    record()
    with transaction() as session:
        lost = deliveries.claim(session, only_delivery().id)
    poll()
    assert lost is not None and receiver.received == []
    make_due()
    poll()
    with transaction() as session:
        failed = PostResult(1.0, 500, "late")
        deliveries.record_attempt(session, get_settings(), lost, failed)
    assert (only_delivery().status, len(only_delivery().attempts)) == (DeliveryStatus.delivered, 1)


@on_sqlite
def test_a_slow_receiver_leaves_room_for_the_others(receiver: WebhookReceiver) -> None:
    make(receiver)
    for number in range(sender.MAX_SENDING):
        record(f"batch_{number}")
    poll()
    assert len(receiver.received) == sender.MAX_SENDING_PER_WEBHOOK


@on_sqlite
def test_many_late_deliveries_of_one_webhook_leave_room_for_the_others(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_FOUND", 3)
    make(receiver)
    for number in range(4):
        record(f"late_{number}")
    make_due(next_attempt_at=database_now(-60))
    make(receiver)
    record("new")
    poll()
    assert "new" in {json.loads(message.body)["data"]["id"] for message in receiver.received}


@on_sqlite
def test_retries_end(receiver: WebhookReceiver) -> None:
    make(receiver)
    record()
    make_due(expires_at=utc_now() - timedelta(seconds=1))
    poll()
    assert (only_delivery().status, receiver.received) == (DeliveryStatus.failed, [])


@on_sqlite
def test_a_receiver_that_fails_for_long_or_is_gone_is_disabled_with_the_reason(
    receiver: WebhookReceiver,
) -> None:
    webhook = make(receiver)
    receiver.statuses = [500, 500, 410]
    record()
    poll()
    with transaction() as session:
        session.execute(update(Webhook).values(failing_since=utc_now() - timedelta(days=6)))
    make_due()
    poll()
    assert read_reason(webhook) == (
        "No delivery has succeeded for 120 hours. The last error: The receiver responded with 500."
    )
    with transaction() as session:
        session.execute(update(Webhook).values(disabled_at=None, failing_since=None))
    make_due()
    poll()
    assert read_reason(webhook) == "The receiver responded with 410 Gone."
    make_due()
    poll()
    record("batch_2")
    assert (len(receiver.received), only_delivery().attempt) == (3, 3)


def read_reason(webhook: Webhook) -> str | None:
    with read_session() as session:
        return session.scalar(select(col(Webhook.disabled_reason)).where(col(Webhook.id) == webhook.id))


def test_the_delays_grow_to_six_hours() -> None:
    delays = [deliveries.next_delay_seconds(attempt) for attempt in (1, 2, 3, 12, 1000)]
    assert [round(delay / 5) for delay in delays[:1]] == [1]
    assert 4 <= delays[0] <= 6 and 12 <= delays[1] <= 18 and 36 <= delays[2] <= 54
    assert all(0.8 * 21_600 <= delay <= 1.2 * 21_600 for delay in delays[3:])


@on_sqlite
def test_the_receiver_is_asked_to_wait_no_longer_than_six_hours(receiver: WebhookReceiver) -> None:
    make(receiver)
    receiver.statuses, receiver.headers = [503], {"Retry-After": "99999"}
    record()
    poll()
    wait = only_delivery().next_attempt_at - utc_now()
    assert timedelta(hours=5.9) < wait < timedelta(hours=6.1)


@on_sqlite
def test_a_webhook_over_http_shows_its_secret_once_and_its_deliveries(
    receiver: WebhookReceiver, client: TestClient
) -> None:
    body = {"name": "ci", "url": receiver.url, "event_types": ["job.failed"]}
    created = client.post(URL, json=body).json()
    assert created["secret"].startswith(created["secret_hint"])
    path = f"{URL}/{created['id']}"
    shown = client.get(path).json()
    assert shown.keys() == created.keys() - {"secret"}
    assert client.get(URL).json()["items"] == [shown]
    tested = client.post(f"{path}/test", json={"event_type": "job.failed"}).json()
    assert (tested["status_code"], tested["event_type"]) == (204, "job.failed")
    record_job_failure()
    wait_until_delivered()
    (delivery,) = client.get(f"{path}/deliveries?status=delivered").json()["items"]
    assert (delivery["status"], delivery["next_attempt_at"]) == ("delivered", None)
    assert delivery["attempts"][0]["status_code"] == 204
    again = client.post(f"{path}/deliveries/{delivery['id']}/redeliver").json()
    assert again["status"] == "pending"
    wait_until_delivered()
    sent = [message.headers["webhook-id"] for message in receiver.received]
    assert sent[1:] == [delivery["id"]] * 2
    assert client.delete(path).status_code == 204
    assert client.get(path).json()["error"]["code"] == "webhook_not_found"


def record_job_failure() -> None:
    with transaction() as session:
        record_event(session, WebhookEventType.job_failed, "job_1")


@on_sqlite
def test_a_changed_webhook_is_checked_like_a_new_one(receiver: WebhookReceiver, client: TestClient) -> None:
    path = f"{URL}/{make(receiver).id}"
    refused = client.patch(path, json={"url": "http://10.0.0.1/"})
    assert (refused.status_code, refused.json()["error"]["fields"][0]["field"]) == (422, "url")
    disabled = client.patch(path, json={"enabled": False}).json()
    assert (disabled["enabled"], disabled["disabled_reason"]) == (False, "A request has disabled it.")
    changed = client.patch(path, json={"enabled": True, "event_types": ["run.failed"], "name": "x"}).json()
    assert (changed["enabled"], changed["event_types"], changed["name"]) == (True, ["run.failed"], "x")
    assert client.post(URL, json={"name": "x", "url": "https://x.y", "event_types": ["z"]}).status_code == 422


@on_sqlite
def test_a_test_without_a_response_explains_why(client: TestClient, allowed: None) -> None:
    body = {"name": "ci", "url": "http://127.0.0.1:1/", "event_types": ["job.failed"]}
    created = client.post(URL, json=body).json()
    refused = client.post(f"{URL}/{created['id']}/test", json={"event_type": "job.failed"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "webhook_unreachable")
    assert "refused" in refused.json()["error"]["message"]


@on_sqlite
def test_a_running_service_delivers_by_itself(receiver: WebhookReceiver, client: TestClient) -> None:
    make(receiver)
    record()
    wait_until_delivered()
    assert len(receiver.received) == 1


@on_sqlite
def test_old_deliveries_are_removed(receiver: WebhookReceiver) -> None:
    make(receiver)
    record()
    poll()
    assert list(delete_records(get_settings(), dry_run=False)) == []
    with transaction() as session:
        session.execute(update(WebhookDelivery).values(finished_at=utc_now() - timedelta(days=91)))
    assert [removal.name[:9] for removal in delete_records(get_settings(), dry_run=False)] == ["delivery_"]
