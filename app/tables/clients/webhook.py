"""Webhooks: addresses that receive events, and each delivery of an event to one of them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, Text, text
from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, new_id, time_field


class Webhook(SQLModel, table=True):
    """An address that receives the events of some types, each signed with the webhook's secret."""

    __tablename__ = "webhook"

    id: str = Field(default_factory=lambda: new_id("webhook"), primary_key=True)
    name: str
    url: str
    event_types: list[str] = Field(default_factory=list, sa_type=Json)
    encrypted_secret: str = Field(sa_type=Text)
    secret_hint: str
    encrypted_previous_secret: str | None = Field(default=None, sa_type=Text)
    previous_secret_expires_at: datetime | None = time_field()
    failing_since: datetime | None = time_field(
        description="Time of the first failed attempt since the last one that succeeded."
    )
    disabled_at: datetime | None = time_field()
    disabled_reason: str | None = None
    created_at: datetime = time_field(default_now=True)
    updated_at: datetime = time_field(default_now=True)


class DeliveryStatus(StrEnum):
    """The state of a delivery."""

    pending = "pending"
    delivered = "delivered"
    failed = "failed"  # The time for retries has passed.


_PENDING = text("status = 'pending'")


class WebhookDelivery(SQLModel, table=True):
    """An event for one webhook, inserted in the transaction that the event reports.

    `webhook_id` is not a foreign key: a webhook that is deleted at the same time must not make that
    transaction fail.
    """

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        Index("ix_webhook_delivery_webhook_id_id", "webhook_id", "id"),
        Index("ix_webhook_delivery_due", "next_attempt_at", sqlite_where=_PENDING, postgresql_where=_PENDING),
    )

    id: str = Field(
        default_factory=lambda: new_id("delivery"),
        primary_key=True,
        description="Sent as `webhook-id`: the same on each attempt, so receivers recognize repetitions.",
    )
    webhook_id: str
    event_id: str = Field(description="Id of the event, the same for all of its deliveries.")
    event_type: str
    payload: str = Field(sa_type=Text, description="The body as JSON, with the same bytes on each attempt.")
    status: DeliveryStatus = Field(default=DeliveryStatus.pending, sa_type=enum_type(DeliveryStatus))
    attempt: int = Field(default=0, description="Counts attempts; the fencing token of a sender's writes.")
    next_attempt_at: datetime = time_field(
        default_now=True, description="A claim moves it into the future, so that it is also the lease."
    )
    expires_at: datetime = time_field(default_now=True, description="Time at which retries end.")
    created_at: datetime = time_field(default_now=True)
    finished_at: datetime | None = time_field()
    attempts: list[dict[str, Any]] = Field(
        default_factory=list, sa_type=Json, description="The attempts that have ended, oldest first."
    )
