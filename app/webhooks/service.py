"""Creating, changing and deleting webhooks, their secrets, and sample events.

Call `record_event` of `app.webhooks.outbox` to report something to them.
"""

import time
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlmodel import Session, col

from app.http.errors import Conflict, HttpError, NotFound
from app.http.paging import CursorQuery, PageQuery, paginate_by_id, paginate_newest_first
from app.settings import Settings
from app.storage.database import database_now, read_session
from app.tables import Webhook, WebhookDelivery
from app.tables.base import utc_now
from app.webhooks.destination import AllowedHosts, check_url
from app.webhooks.encryption import SecretUnreadable, decrypt, encrypt
from app.webhooks.event_types import SAMPLE_ID, WebhookEventType, make_payload, new_event_id
from app.webhooks.schemas import WebhookCreate, WebhookTestView, WebhookUpdate
from app.webhooks.signing import HINT_CHARACTERS, new_signing_secret, sign
from app.webhooks.transport import post
from trainers.runtime.error_codes import ErrorCode

MAX_WEBHOOKS = 100
DISABLED_BY_REQUEST = "A request has disabled it."


class TooManyWebhooks(Conflict):
    """The service has as many webhooks as it allows."""

    code = ErrorCode.too_many_webhooks


def create_webhook(session: Session, settings: Settings, body: WebhookCreate) -> tuple[Webhook, str]:
    """Create a webhook; return it with its signing secret, which is stored encrypted.

    Raises UnprocessableContent for a URL that is refused, EncryptionKeyMissing and TooManyWebhooks.
    """
    url, secret = check_url(body.url, settings), new_signing_secret()
    if len(session.scalars(select(col(Webhook.id)).limit(MAX_WEBHOOKS)).all()) == MAX_WEBHOOKS:
        raise TooManyWebhooks(
            f"There are {MAX_WEBHOOKS} webhooks, and each event is compared with all of them.",
            hint="Delete one that is no longer needed: DELETE /api/v1/webhooks/{webhook_id}.",
        )
    webhook = Webhook(
        name=body.name,
        url=url,
        event_types=_unique(body.event_types),
        encrypted_secret=encrypt(settings, secret),
        secret_hint=secret[:HINT_CHARACTERS],
    )
    session.add(webhook)
    session.flush()
    return webhook, secret


def list_webhooks(session: Session, paging: PageQuery) -> tuple[Sequence[Webhook], str | None]:
    """Return a page of webhooks, newest first."""
    return paginate_newest_first(session, select(Webhook), col(Webhook.id), paging)


def list_webhooks_by_cursor(session: Session, cursor: CursorQuery) -> tuple[Sequence[Webhook], bool]:
    """Return a page of webhooks in OpenAI's terms, and whether more follow."""
    return paginate_by_id(session, select(Webhook), col(Webhook.id), cursor)


class WebhookNotFound(NotFound):
    """No webhook has this id."""

    code = ErrorCode.webhook_not_found


def get_webhook(session: Session, webhook_id: str) -> Webhook:
    """Return a webhook; raises WebhookNotFound."""
    webhook = session.get(Webhook, webhook_id)
    if webhook is None:
        raise WebhookNotFound(
            f"There is no webhook {webhook_id!r}.", hint="List the webhooks: GET /api/v1/webhooks."
        )
    return webhook


def update_webhook(session: Session, settings: Settings, webhook_id: str, body: WebhookUpdate) -> Webhook:
    """Change the fields that the body contains.

    Raises WebhookNotFound, and UnprocessableContent for a URL that is refused.
    """
    webhook = get_webhook(session, webhook_id)
    if body.name is not None:
        webhook.name = body.name
    if body.url is not None:
        webhook.url = check_url(body.url, settings)
    if body.event_types is not None:
        webhook.event_types = _unique(body.event_types)
    if body.enabled is True:
        webhook.disabled_at = webhook.disabled_reason = webhook.failing_since = None
    elif body.enabled is False and webhook.disabled_at is None:
        webhook.disabled_at, webhook.disabled_reason = utc_now(), DISABLED_BY_REQUEST
    if session.is_modified(webhook):
        webhook.updated_at = utc_now()
    return webhook


def delete_webhook(session: Session, webhook_id: str) -> None:
    """Delete a webhook and its deliveries; raises WebhookNotFound."""
    webhook = get_webhook(session, webhook_id)
    session.execute(delete(WebhookDelivery).where(col(WebhookDelivery.webhook_id) == webhook_id))
    session.delete(webhook)


def rotate_secret(
    session: Session, settings: Settings, webhook_id: str, keep_previous_seconds: float
) -> tuple[Webhook, str]:
    """Replace the signing secret; return the webhook with the new one.

    Raises WebhookNotFound and EncryptionKeyMissing.
    """
    webhook, secret = get_webhook(session, webhook_id), new_signing_secret()
    keeps = keep_previous_seconds > 0
    webhook.encrypted_previous_secret = webhook.encrypted_secret if keeps else None
    webhook.previous_secret_expires_at = (
        session.scalar(select(database_now(keep_previous_seconds))) if keeps else None
    )
    webhook.encrypted_secret, webhook.secret_hint = encrypt(settings, secret), secret[:HINT_CHARACTERS]
    webhook.updated_at = utc_now()
    return webhook, secret


def list_secrets(settings: Settings, webhook: Webhook) -> list[str]:
    """Return the secrets that sign now: the current one, and the previous one while it is kept.

    Raises EncryptionKeyMissing and SecretUnreadable.
    """
    stored = [webhook.encrypted_secret]
    expires_at = webhook.previous_secret_expires_at
    if webhook.encrypted_previous_secret is not None and expires_at is not None and expires_at > utc_now():
        stored.append(webhook.encrypted_previous_secret)
    return [decrypt(settings, each) for each in stored]


class WebhookUnreachable(HttpError):
    """The sample event got no response."""

    code = ErrorCode.webhook_unreachable


def send_test(settings: Settings, webhook_id: str, event_type: WebhookEventType) -> WebhookTestView:
    """Send a sample event at once, without a record; return the response.

    Raises WebhookNotFound, EncryptionKeyMissing, and WebhookUnreachable if there is no response.
    """
    with read_session() as session:
        webhook = get_webhook(session, webhook_id)
    event_id = new_event_id()
    body = make_payload(event_id, event_type, SAMPLE_ID).encode()
    try:
        secrets = list_secrets(settings, webhook)
    except SecretUnreadable as error:
        raise WebhookUnreachable(str(error)) from None
    headers = message_headers(secrets, event_id, body)
    result = post(webhook.url, headers, body, AllowedHosts.from_settings(settings))
    if result.status_code is None:
        raise WebhookUnreachable(f"The sample event got no response. {result.error}")
    return WebhookTestView(
        event_type=event_type, status_code=result.status_code, duration_seconds=result.duration_seconds
    )


def message_headers(secrets: Sequence[str], message_id: str, body: bytes) -> dict[str, str]:
    """Return the headers of a message that is sent now."""
    signature = sign(secrets, message_id, int(time.time()), body)
    return {"Content-Type": "application/json", "User-Agent": "Tunesmith-Webhooks", **signature}


def _unique(event_types: Sequence[WebhookEventType]) -> list[str]:
    return [*dict.fromkeys(map(str, event_types))]
