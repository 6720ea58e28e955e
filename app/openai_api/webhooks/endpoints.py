"""OpenAI's API of webhook endpoints, which are our webhooks."""

from fastapi import APIRouter

from app.openai_api.paging import ListPage, NewestFirst, list_page
from app.openai_api.webhooks.schemas import (
    WebhookEndpointCreate,
    WebhookEndpointDeleted,
    WebhookEndpointId,
    WebhookEndpointObject,
    WebhookEndpointRotate,
    WebhookEndpointSecretObject,
    WebhookEndpointTest,
    WebhookEndpointTestResult,
    WebhookEndpointUpdate,
    WebhookEventTypeList,
    view_endpoint,
    view_secret,
)
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.webhooks import service
from app.webhooks.event_types import WebhookEventType

DAY_SECONDS = 24 * 3600

router = APIRouter(tags=["webhooks"])


@router.post("/webhook_endpoints")
def create_webhook_endpoint(
    session: WriteSession, body: WebhookEndpointCreate
) -> WebhookEndpointSecretObject:
    """Create a webhook endpoint. Only this response contains its signing secret."""
    return view_secret(*service.create_webhook(session, get_settings(), body.to_native()))


@router.get("/webhook_endpoints")
def list_webhook_endpoints(session: ReadSession, cursor: NewestFirst) -> ListPage[WebhookEndpointObject]:
    """List the webhook endpoints, newest first."""
    webhooks, has_more = service.list_webhooks_by_cursor(session, cursor)
    return list_page([view_endpoint(webhook) for webhook in webhooks], has_more)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def get_webhook_endpoint(
    session: ReadSession, webhook_endpoint_id: WebhookEndpointId
) -> WebhookEndpointObject:
    """Return a webhook endpoint."""
    return view_endpoint(service.get_webhook(session, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
def update_webhook_endpoint(
    session: WriteSession, webhook_endpoint_id: WebhookEndpointId, body: WebhookEndpointUpdate
) -> WebhookEndpointObject:
    """Change a webhook endpoint."""
    return view_endpoint(
        service.update_webhook(session, get_settings(), webhook_endpoint_id, body.to_native())
    )


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete_webhook_endpoint(
    session: WriteSession, webhook_endpoint_id: WebhookEndpointId
) -> WebhookEndpointDeleted:
    """Delete a webhook endpoint and its deliveries."""
    service.delete_webhook(session, webhook_endpoint_id)
    return WebhookEndpointDeleted(id=webhook_endpoint_id, object="webhook_endpoint.deleted", deleted=True)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
def rotate_webhook_endpoint_secret(
    session: WriteSession, webhook_endpoint_id: WebhookEndpointId, body: WebhookEndpointRotate
) -> WebhookEndpointSecretObject:
    """Replace the signing secret of a webhook endpoint."""
    kept_seconds = DAY_SECONDS if body.keep_old_secret_active_for_24_hours else 0
    return view_secret(*service.rotate_secret(session, get_settings(), webhook_endpoint_id, kept_seconds))


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
def test_webhook_endpoint(
    webhook_endpoint_id: WebhookEndpointId, body: WebhookEndpointTest
) -> WebhookEndpointTestResult:
    """Send a sample event at once, and return the status of the response."""
    result = service.send_test(get_settings(), webhook_endpoint_id, body.event_type)
    return WebhookEndpointTestResult(
        object="webhook_endpoint.test",
        webhook_endpoint_id=webhook_endpoint_id,
        event_type=result.event_type,
        status_code=result.status_code,
        success=True,
    )


@router.get("/webhook_event_types")
def list_webhook_event_types() -> WebhookEventTypeList:
    """List the types of events: OpenAI's that this service sends, and its own."""
    return WebhookEventTypeList(object="list", data=[event_type.value for event_type in WebhookEventType])
