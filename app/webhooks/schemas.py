"""Requests and responses of the endpoints of webhooks."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.tables import DeliveryStatus, Webhook, WebhookDelivery
from app.webhooks.destination import MAX_URL_CHARACTERS
from app.webhooks.event_types import WebhookEventType
from trainers.configs.base import PRINTABLE_PATTERN, Config

MAX_HOURS = 7 * 24

CREATE_EXAMPLES = {
    "jobs": {
        "summary": "The end of each job",
        "value": {
            "name": "ci",
            "url": "https://example.com/hooks/tunesmith",
            "event_types": ["job.succeeded", "job.failed", "job.cancelled"],
        },
    }
}
UPDATE_EXAMPLES = {
    "enable": {"summary": "Enable a webhook that was disabled", "value": {"enabled": True}},
    "types": {"summary": "Other events", "value": {"event_types": ["job.failed"]}},
}
ROTATE_EXAMPLES = {
    "day": {"summary": "Sign with both secrets for a day", "value": {"keep_previous_hours": 24}}
}
TEST_EXAMPLES = {"job": {"summary": "A sample of one type", "value": {"event_type": "job.succeeded"}}}

WebhookName = Annotated[
    str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]
WebhookUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARACTERS,
        description="Address of the receiver: `https://`, on the internet unless the operator has allowed "
        "its host. Redirects are not followed.",
    ),
]
EventTypes = Annotated[
    list[WebhookEventType],
    Field(min_length=1, max_length=100, description="Types of the events that it receives."),
]


class WebhookCreate(Config):
    """A new webhook."""

    name: WebhookName = Field(description="Purpose or owner of the webhook.")
    url: WebhookUrl
    event_types: EventTypes


class WebhookUpdate(Config):
    """Changes of a webhook. Omitted fields keep their values."""

    name: WebhookName | None = Field(None, description="Purpose or owner of the webhook.")
    url: WebhookUrl | None = Field(None, description="Address of the receiver.")
    event_types: EventTypes | None = Field(None, description="Types of the events that it receives.")
    enabled: bool | None = Field(
        None, description="False stops the deliveries; true resumes them, with those that have not expired."
    )


class WebhookSecretRotate(Config):
    """How a secret is replaced."""

    keep_previous_hours: float = Field(
        24,
        ge=0,
        le=MAX_HOURS,
        description="Hours for which messages are also signed with the previous secret.",
    )


class WebhookTest(Config):
    """The sample event to send."""

    event_type: WebhookEventType = Field(description="Type of the event.")


class WebhookView(BaseModel):
    """A webhook without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the webhook, `webhook_…`.")
    name: str = Field(description="Purpose or owner of the webhook.")
    url: str = Field(description="Address of the receiver, in normal form.")
    event_types: list[WebhookEventType] = Field(description="Types of the events that it receives.")
    secret_hint: str = Field(description="First characters of the signing secret.")
    enabled: bool = Field(description="Whether events are recorded for it and sent to it.")
    disabled_reason: str | None = Field(description="Why it was disabled; null while it is enabled.")
    failing_since: datetime | None = Field(
        description="Time of the first failed attempt since the last success; null if the last one succeeded."
    )
    created_at: datetime = Field(description="Time of creation.")
    updated_at: datetime = Field(description="Time of the last change, also of the secret.")


class WebhookSecretView(WebhookView):
    """A webhook with a new signing secret, which no other response contains."""

    secret: str = Field(description="The signing secret, `whsec_…`, with which receivers check messages.")


class WebhookTestView(BaseModel):
    """The response of a receiver to a sample event."""

    event_type: WebhookEventType = Field(description="Type of the event.")
    status_code: int = Field(description="HTTP status of the response.")
    duration_seconds: float = Field(description="Seconds until the response.")


class DeliveryAttemptView(BaseModel):
    """One attempt to deliver an event."""

    attempt: int = Field(description="Number of the attempt, from 1.")
    started_at: datetime = Field(description="Time at which it started.")
    duration_seconds: float = Field(description="Seconds until the response or the failure.")
    status_code: int | None = Field(description="HTTP status of the response; null without one.")
    error: str | None = Field(description="Why it failed; null if it succeeded.")


class DeliveryView(BaseModel):
    """An event for a webhook."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the delivery, sent as the header `webhook-id` on each attempt.")
    event_id: str = Field(description="Id of the event, `evt_…`.")
    event_type: WebhookEventType = Field(description="Type of the event.")
    payload: str = Field(description="The body that is sent, as JSON.")
    status: DeliveryStatus = Field(description="`pending` until it is accepted, or the retries end.")
    attempts: list[DeliveryAttemptView] = Field(description="Attempts that have ended, oldest first.")
    next_attempt_at: datetime | None = Field(description="Time of the next attempt; null after the last.")
    expires_at: datetime = Field(description="Time at which the retries end.")
    created_at: datetime = Field(description="Time of the event.")
    finished_at: datetime | None = Field(description="Time at which it was accepted or given up.")


def webhook_view(webhook: Webhook) -> WebhookView:
    """Return the response for a webhook."""
    return WebhookView.model_validate(
        webhook.model_dump() | {"enabled": webhook.disabled_at is None}, from_attributes=False
    )


def webhook_secret_view(webhook: Webhook, secret: str) -> WebhookSecretView:
    """Return the response for a webhook that has a new secret."""
    return WebhookSecretView(**webhook_view(webhook).model_dump(), secret=secret)


def delivery_view(delivery: WebhookDelivery) -> DeliveryView:
    """Return the response for a delivery."""
    is_pending = delivery.status is DeliveryStatus.pending
    values = delivery.model_dump() | ({} if is_pending else {"next_attempt_at": None})
    return DeliveryView.model_validate(values)
