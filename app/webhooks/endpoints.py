"""Webhooks over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from app.http.paging import Page, Paging
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import DeliveryStatus
from app.webhooks import deliveries, service
from app.webhooks.schemas import (
    CREATE_EXAMPLES,
    ROTATE_EXAMPLES,
    TEST_EXAMPLES,
    UPDATE_EXAMPLES,
    DeliveryView,
    WebhookCreate,
    WebhookSecretRotate,
    WebhookSecretView,
    WebhookTest,
    WebhookTestView,
    WebhookUpdate,
    WebhookView,
    delivery_view,
    webhook_secret_view,
    webhook_view,
)

HOUR_SECONDS = 3600

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

WebhookId = Annotated[str, Path(max_length=100, description="Id of the webhook, `webhook_…`.")]
DeliveryId = Annotated[str, Path(max_length=100, description="Id of the delivery, `delivery_…`.")]


@router.post("", status_code=201)
def create_webhook(
    session: WriteSession, body: Annotated[WebhookCreate, Body(openapi_examples=CREATE_EXAMPLES)]
) -> WebhookSecretView:
    """Create a webhook. Only this response contains its signing secret."""
    return webhook_secret_view(*service.create_webhook(session, get_settings(), body))


@router.get("")
def list_webhooks(session: ReadSession, paging: Paging) -> Page[WebhookView]:
    """List webhooks, newest first."""
    webhooks, after = service.list_webhooks(session, paging)
    return Page(items=[webhook_view(webhook) for webhook in webhooks], next=after)


@router.get("/{webhook_id}")
def get_webhook(session: ReadSession, webhook_id: WebhookId) -> WebhookView:
    """Return a webhook."""
    return webhook_view(service.get_webhook(session, webhook_id))


@router.patch("/{webhook_id}")
def update_webhook(
    session: WriteSession,
    webhook_id: WebhookId,
    body: Annotated[WebhookUpdate, Body(openapi_examples=UPDATE_EXAMPLES)],
) -> WebhookView:
    """Change a webhook, or enable it again. A change of its events applies to later ones."""
    return webhook_view(service.update_webhook(session, get_settings(), webhook_id, body))


@router.delete("/{webhook_id}", status_code=204)
def delete_webhook(session: WriteSession, webhook_id: WebhookId) -> None:
    """Delete a webhook and its deliveries."""
    service.delete_webhook(session, webhook_id)


@router.post("/{webhook_id}/rotate-secret")
def rotate_webhook_secret(
    session: WriteSession,
    webhook_id: WebhookId,
    body: Annotated[WebhookSecretRotate, Body(openapi_examples=ROTATE_EXAMPLES)],
) -> WebhookSecretView:
    """Replace the signing secret. For a time, messages carry signatures by both secrets."""
    kept_seconds = body.keep_previous_hours * HOUR_SECONDS
    return webhook_secret_view(*service.rotate_secret(session, get_settings(), webhook_id, kept_seconds))


@router.post("/{webhook_id}/test")
def test_webhook(
    webhook_id: WebhookId, body: Annotated[WebhookTest, Body(openapi_examples=TEST_EXAMPLES)]
) -> WebhookTestView:
    """Send a sample event at once and return the status of the response; nothing is recorded or repeated."""
    return service.send_test(get_settings(), webhook_id, body.event_type)


@router.get("/{webhook_id}/deliveries")
def list_webhook_deliveries(
    session: ReadSession,
    webhook_id: WebhookId,
    paging: Paging,
    status: Annotated[
        DeliveryStatus | None, Query(description="Return only deliveries with this status.")
    ] = None,
) -> Page[DeliveryView]:
    """List the deliveries of a webhook with their attempts, newest first."""
    found, after = deliveries.list_deliveries(session, webhook_id, status, paging)
    return Page(items=[delivery_view(delivery) for delivery in found], next=after)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver")
def redeliver_event(session: WriteSession, webhook_id: WebhookId, delivery_id: DeliveryId) -> DeliveryView:
    """Send an event again, with the same `webhook-id`."""
    return delivery_view(deliveries.redeliver(session, get_settings(), webhook_id, delivery_id))
