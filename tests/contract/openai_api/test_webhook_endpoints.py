"""OpenAI's API of webhook endpoints, through its official client."""

from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from app.settings import get_settings
from tests.webhook_receiver import receive_webhooks

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
TYPES: Any = ["fine_tuning.job.succeeded", "batch.completed"]


def create(openai: OpenAI, url: str = "https://example.com/hook") -> Any:
    return openai.webhooks.create(name="ci", url=url, event_types=TYPES)


def test_an_endpoint_is_created_changed_listed_and_deleted(openai: OpenAI) -> None:
    first, second = create(openai), create(openai)
    assert first.signing_secret.startswith(first.signing_secret_hint)
    assert (first.object, first.event_types, first.url) == (
        "webhook_endpoint",
        TYPES,
        "https://example.com/hook",
    )
    assert [each.id for each in openai.webhooks.list(limit=1)] == [second.id, first.id]
    changed = openai.webhooks.update(first.id, name="new", event_types=["batch.failed"])
    assert (changed.name, changed.event_types, changed.url) == ("new", ["batch.failed"], first.url)
    assert openai.webhooks.retrieve(first.id) == changed
    deleted = openai.webhooks.delete(first.id)
    assert (deleted.id, deleted.deleted) == (first.id, True)
    with pytest.raises(NotFoundError) as caught:
        openai.webhooks.retrieve(first.id)
    assert caught.value.code == "webhook_not_found"


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "x" * 101])
def test_a_name_that_is_refused_names_the_parameter(openai: OpenAI, name: str) -> None:
    endpoint = create(openai)
    with pytest.raises(BadRequestError) as created:
        openai.webhooks.create(name=name, url="https://example.com/", event_types=TYPES)
    with pytest.raises(BadRequestError) as updated:
        openai.webhooks.update(endpoint.id, name=name)
    assert (created.value.param, updated.value.param) == ("name", "name")


def test_the_client_accepts_a_test_event_after_the_secret_was_rotated(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_WEBHOOK_ALLOWED_HOSTS", '["127.0.0.1"]')
    get_settings.cache_clear()
    with receive_webhooks() as receiver:
        old = create(openai, receiver.url)
        new = openai.webhooks.rotate_secret(old.id, keep_old_secret_active_for_24_hours=True)
        result = openai.webhooks.test(old.id, event_type="batch.completed")
        assert (result.status_code, result.success, result.webhook_endpoint_id) == (204, True, old.id)
        (message,) = receiver.received
        for secret in (old.signing_secret, new.signing_secret):
            event = openai.webhooks.unwrap(message.body, message.headers, secret=secret)
            assert (event.type, event.id[:4]) == ("batch.completed", "evt_")
        assert openai.webhooks.rotate_secret(old.id).signing_secret not in (old.signing_secret, new)


def test_the_types_of_events_are_listed_and_any_other_is_refused_by_name(openai: OpenAI) -> None:
    listed = openai.webhooks.event_types.list().data
    assert {*TYPES, "eval.run.canceled", "job.failed"} <= set(listed)
    with pytest.raises(BadRequestError) as caught:
        openai.webhooks.create(name="x", url="https://example.com", event_types=["video.failed"])
    assert (caught.value.param, "batch.completed" in caught.value.message) == ("event_types.0", True)


@pytest.mark.parametrize("url", ["http://example.com", "https://127.0.0.1", "https://u:p@example.com"])
def test_a_url_that_is_refused_names_the_parameter(openai: OpenAI, url: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(openai, url)
    assert caught.value.param == "url"


def test_a_receiver_that_cannot_be_reached_is_an_error_that_is_not_repeated(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_WEBHOOK_ALLOWED_HOSTS", '["127.0.0.1"]')
    get_settings.cache_clear()
    endpoint = create(openai, "http://127.0.0.1:1/")
    with pytest.raises(BadRequestError) as caught:
        openai.webhooks.test(endpoint.id, event_type="batch.completed")
    assert caught.value.code == "webhook_unreachable"
