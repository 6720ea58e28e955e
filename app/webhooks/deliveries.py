"""The deliveries of webhooks: claiming what is due, recording attempts, listing and repeating.

A claim is one guarded UPDATE that counts the attempt and moves its next one past the end of this one, so one
sender of all API processes has it, and the delivery of a sender that dies is due again.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlmodel import Session, col

from app.http.errors import Conflict, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.settings import Settings
from app.storage.database import database_now
from app.tables import DeliveryStatus, Webhook, WebhookDelivery
from app.tables.base import utc_now
from app.webhooks.service import get_webhook
from app.webhooks.transport import PostResult
from trainers.runtime.error_codes import ErrorCode

# Longer than an attempt can take, with the resolution of a name.
LEASE_SECONDS = 120.0
FIRST_RETRY_SECONDS = 5.0
RETRY_FACTOR = 3.0
MAX_RETRY_SECONDS = 6 * 3600.0
JITTER = 0.2
GONE = 410


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that this process may send, as of one attempt."""

    id: str
    attempt: int
    payload: str
    webhook: Webhook
    started_at: datetime


def find_due(session: Session, excluded: Collection[str], limit: int) -> Sequence[tuple[str, str]]:
    """Return the ids of deliveries that are due, each with that of its webhook, longest due first.

    `excluded` are the ids of webhooks to which this process sends enough at the moment.
    """
    statement = (
        select(col(WebhookDelivery.id), col(WebhookDelivery.webhook_id))
        .join(Webhook, col(Webhook.id) == col(WebhookDelivery.webhook_id))
        .where(*_is_due(), col(Webhook.disabled_at).is_(None), col(Webhook.id).not_in(excluded))
        .order_by(col(WebhookDelivery.next_attempt_at))
        .limit(limit)
    )
    return [(row[0], row[1]) for row in session.execute(statement)]


def claim(session: Session, delivery_id: str) -> ClaimedDelivery | None:
    """Claim a delivery for one attempt; None if another sender has claimed it, or its webhook is gone."""
    delivery = session.scalars(
        update(WebhookDelivery)
        .where(col(WebhookDelivery.id) == delivery_id, *_is_due())
        .values(attempt=col(WebhookDelivery.attempt) + 1, next_attempt_at=database_now(LEASE_SECONDS))
        .returning(WebhookDelivery)
        .execution_options(synchronize_session=False, populate_existing=True)
    ).one_or_none()
    webhook = session.get(Webhook, delivery.webhook_id) if delivery is not None else None
    if delivery is None or webhook is None:
        return None
    return ClaimedDelivery(delivery.id, delivery.attempt, delivery.payload, webhook, utc_now())


def record_attempt(
    session: Session, settings: Settings, claimed: ClaimedDelivery, result: PostResult
) -> None:
    """Record the outcome of an attempt, unless another one has begun since; plan the next one if it failed.

    A webhook that has failed for too long, or that responds with 410, is disabled.
    """
    delivery = session.get(WebhookDelivery, claimed.id, populate_existing=True)
    if delivery is None:
        return
    entry = {
        "attempt": claimed.attempt,
        "started_at": claimed.started_at.isoformat(),
        "duration_seconds": round(result.duration_seconds, 3),
        "status_code": result.status_code,
        "error": result.error,
    }
    values: dict[str, Any] = {"attempts": [*delivery.attempts, entry]}
    if result.succeeded:
        values |= {"status": DeliveryStatus.delivered, "finished_at": database_now()}
    else:
        delay = max(next_delay_seconds(claimed.attempt), result.retry_after_seconds)
        values |= {"next_attempt_at": database_now(delay)}
    statement = update(WebhookDelivery).where(
        col(WebhookDelivery.id) == claimed.id,
        col(WebhookDelivery.attempt) == claimed.attempt,
        col(WebhookDelivery.status) == DeliveryStatus.pending,
    )
    written = statement.values(values).returning(col(WebhookDelivery.id))
    if session.scalar(written.execution_options(synchronize_session=False)) is not None:
        _record_health(session, settings, claimed.webhook.id, result)


def next_delay_seconds(attempt: int) -> float:
    """Return the time until the next attempt: exponential, with jitter, and at most a quarter of a day."""
    seconds = min(FIRST_RETRY_SECONDS * RETRY_FACTOR ** min(attempt - 1, 20), MAX_RETRY_SECONDS)
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311


def fail_expired(session: Session) -> int:
    """End the deliveries whose time for retries has passed, and return their number."""
    statement = (
        update(WebhookDelivery)
        .where(*_is_due(), col(WebhookDelivery.expires_at) < database_now())
        .values(status=DeliveryStatus.failed, finished_at=database_now())
        .returning(col(WebhookDelivery.id))
    )
    return len(session.scalars(statement.execution_options(synchronize_session=False)).all())


def select_expired() -> Select[str]:
    """Return the statement for the deliveries that `fail_expired` would end."""
    expired = select(col(WebhookDelivery.id)).where(*_is_due())
    return expired.where(col(WebhookDelivery.expires_at) < database_now())


def list_deliveries(
    session: Session, webhook_id: str, status: DeliveryStatus | None, paging: PageQuery
) -> tuple[Sequence[WebhookDelivery], str | None]:
    """Return a page of a webhook's deliveries, newest first; raises WebhookNotFound."""
    get_webhook(session, webhook_id)
    statement = select(WebhookDelivery).where(col(WebhookDelivery.webhook_id) == webhook_id)
    if status is not None:
        statement = statement.where(col(WebhookDelivery.status) == status)
    return paginate_newest_first(session, statement, col(WebhookDelivery.id), paging)


class DeliveryNotFound(NotFound):
    """The webhook has no delivery with this id."""

    code = ErrorCode.delivery_not_found


class WebhookDisabled(Conflict):
    """Nothing is sent to a disabled webhook."""

    code = ErrorCode.webhook_disabled


def redeliver(session: Session, settings: Settings, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """Queue a delivery again, with the same `webhook-id` and new retries; one in progress stays as it is.

    Raises WebhookNotFound, DeliveryNotFound and WebhookDisabled.
    """
    webhook = get_webhook(session, webhook_id)
    delivery = session.get(WebhookDelivery, delivery_id)
    if delivery is None or delivery.webhook_id != webhook_id:
        raise DeliveryNotFound(
            f"The webhook {webhook_id} has no delivery {delivery_id!r}.",
            hint=f"List its deliveries: GET /api/v1/webhooks/{webhook_id}/deliveries.",
        )
    if webhook.disabled_at is not None:
        raise WebhookDisabled(
            f"The webhook {webhook_id} is disabled: {webhook.disabled_reason}",
            hint='Enable it first: PATCH /api/v1/webhooks/{webhook_id} with `"enabled": true`.',
        )
    ended = delivery.attempts[-1]["attempt"] if delivery.attempts else 0
    if delivery.status is not DeliveryStatus.pending or delivery.attempt == ended:
        values = {
            "status": DeliveryStatus.pending,
            "finished_at": None,
            "next_attempt_at": database_now(),
            "expires_at": database_now(settings.webhook_retry_seconds),
        }
        session.execute(
            update(WebhookDelivery)
            .where(col(WebhookDelivery.id) == delivery_id, col(WebhookDelivery.attempt) == delivery.attempt)
            .values(values)
            .execution_options(synchronize_session=False)
        )
    session.refresh(delivery)
    return delivery


def _is_due() -> list[Any]:
    return [
        col(WebhookDelivery.status) == DeliveryStatus.pending,
        col(WebhookDelivery.next_attempt_at) <= database_now(),
    ]


def _record_health(session: Session, settings: Settings, webhook_id: str, result: PostResult) -> None:
    webhook = update(Webhook).where(col(Webhook.id) == webhook_id)
    options = {"synchronize_session": False}
    if result.succeeded:
        healthy = webhook.where(col(Webhook.failing_since).is_not(None)).values(failing_since=None)
        session.execute(healthy, execution_options=options)
        return
    since = func.coalesce(col(Webhook.failing_since), database_now())
    session.execute(webhook.values(failing_since=since), execution_options=options)
    enabled = webhook.where(col(Webhook.disabled_at).is_(None))
    if result.status_code == GONE:
        reason = "The receiver responded with 410 Gone."
    else:
        enabled = enabled.where(col(Webhook.failing_since) < database_now(-settings.webhook_disable_seconds))
        hours = settings.webhook_disable_seconds / 3600
        reason = f"No delivery has succeeded for {hours:g} hours. The last error: {result.error}"
    disabled = enabled.values(disabled_at=database_now(), disabled_reason=reason)
    session.execute(disabled, execution_options=options)
