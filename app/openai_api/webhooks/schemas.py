"""The shapes of OpenAI's API of webhook endpoints."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.openai_api.parameters import OpenAIBody
from app.tables import Webhook
from app.webhooks.event_types import WebhookEventType
from app.webhooks.schemas import WebhookCreate, WebhookName, WebhookUpdate, WebhookUrl

WebhookEndpointId = Annotated[str, Field(max_length=64, description="Id of a webhook endpoint.")]
# A strict field would accept members of the enum alone, not their names.
EventTypeName = Annotated[WebhookEventType, Field(strict=False)]
EventTypeNames = Annotated[
    list[EventTypeName],
    Field(min_length=1, max_length=100, description="Types of the events that it receives."),
]


class WebhookEndpointCreate(OpenAIBody):
    """A new webhook endpoint."""

    event_types: EventTypeNames
    name: WebhookName = Field(description="A name for people.")
    url: WebhookUrl

    def to_native(self) -> WebhookCreate:
        """Return the request in the service's own terms."""
        return WebhookCreate(name=self.name, url=self.url, event_types=self.event_types)


class WebhookEndpointUpdate(OpenAIBody):
    """Changes of a webhook endpoint."""

    event_types: EventTypeNames | None = Field(None, description="Types of the events that it receives.")
    name: WebhookName | None = Field(None, description="A name for people.")
    url: WebhookUrl | None = Field(None, description="The `https://` URL of the receiver.")

    def to_native(self) -> WebhookUpdate:
        """Return the request in the service's own terms."""
        return WebhookUpdate(**self.model_dump(exclude_unset=True))


class WebhookEndpointRotate(OpenAIBody):
    """How the secret of a webhook endpoint is replaced."""

    keep_old_secret_active_for_24_hours: bool = Field(
        False, description="Whether messages are also signed with the old secret for 24 hours."
    )


class WebhookEndpointTest(OpenAIBody):
    """The sample event to send."""

    event_type: EventTypeName = Field(description="Type of the event.")


class WebhookEndpointObject(BaseModel):
    """A webhook endpoint."""

    id: WebhookEndpointId
    object: Literal["webhook_endpoint"] = Field(description="Always `webhook_endpoint`.")
    created_at: int = Field(description="Unix time of the creation.")
    updated_at: int = Field(description="Unix time of the last change, also of the secret.")
    event_types: list[str] = Field(description="Types of the events that it receives.")
    name: str = Field(description="A name for people.")
    url: str = Field(description="The URL of the receiver.")
    signing_secret_hint: str = Field(description="First characters of the signing secret.")


class WebhookEndpointSecretObject(WebhookEndpointObject):
    """A webhook endpoint with a new signing secret, which no other response contains."""

    signing_secret: str = Field(description="The signing secret, `whsec_…`.")


class WebhookEndpointDeleted(BaseModel):
    """The response to a deletion."""

    id: WebhookEndpointId
    object: Literal["webhook_endpoint.deleted"] = Field(description="Always `webhook_endpoint.deleted`.")
    deleted: bool = Field(description="Always true.")


class WebhookEndpointTestResult(BaseModel):
    """The response of a receiver to a sample event."""

    object: Literal["webhook_endpoint.test"] = Field(description="Always `webhook_endpoint.test`.")
    webhook_endpoint_id: WebhookEndpointId
    event_type: str = Field(description="Type of the event.")
    status_code: int = Field(description="HTTP status of the response.")
    success: Literal[True] = Field(description="Always true; without a response there is an error.")


class WebhookEventTypeList(BaseModel):
    """The types of events."""

    object: Literal["list"] = Field(description="Always `list`.")
    data: list[str] = Field(description="Names of the types.")


def view_endpoint(webhook: Webhook) -> WebhookEndpointObject:
    """Return a webhook in OpenAI's shape."""
    return WebhookEndpointObject(
        id=webhook.id,
        object="webhook_endpoint",
        created_at=int(webhook.created_at.timestamp()),
        updated_at=int(webhook.updated_at.timestamp()),
        event_types=webhook.event_types,
        name=webhook.name,
        url=webhook.url,
        signing_secret_hint=webhook.secret_hint,
    )


def view_secret(webhook: Webhook, secret: str) -> WebhookEndpointSecretObject:
    """Return a webhook that has a new secret in OpenAI's shape."""
    return WebhookEndpointSecretObject(**view_endpoint(webhook).model_dump(), signing_secret=secret)
