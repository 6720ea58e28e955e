"""The shapes of OpenAI's stored chat completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.completions.rows import load_text
from app.openai_api.parameters import Metadata, OpenAIBody
from app.tables import StoredCompletion

CompletionId = Annotated[str, Field(max_length=64, description="Id of a chat completion, `chatcmpl-…`.")]

# Parameters of the request that OpenAI shows with a stored completion.
PARAMETERS = (
    "frequency_penalty",
    "presence_penalty",
    "response_format",
    "seed",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
)


class ChatCompletion(BaseModel):
    """A chat completion as it was generated, with its metadata and the parameters of its request."""

    model_config = ConfigDict(extra="allow")

    id: CompletionId
    object: Literal["chat.completion"] = Field(description="Always `chat.completion`.")
    created: int = Field(description="Unix time of the completion.")
    model: str = Field(description="Model name of the request.")
    choices: list[dict[str, Any]] = Field(description="The completions, each with a `message`.")
    metadata: dict[str, str] = Field(description="The pairs of the request, or of the last update.")
    expires_at: int = Field(description="Unix time of the deletion; not in OpenAI's API.")


class ChatCompletionUpdate(OpenAIBody):
    """The metadata to keep instead."""

    metadata: Metadata | None


class ChatCompletionDeleted(BaseModel):
    """The response to a deletion."""

    id: CompletionId
    object: Literal["chat.completion.deleted"] = Field(description="Always `chat.completion.deleted`.")
    deleted: bool = Field(description="Always true.")


class StoredMessage(BaseModel):
    """A message of a request."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="Id of the message: that of the completion and its position.")
    role: str = Field(description="Role of the author.")
    content: str | None = Field(description="The text; null if the message has parts.")
    content_parts: list[dict[str, Any]] | None = Field(description="Parts of the message; null for a text.")


def view_completion(row: StoredCompletion) -> ChatCompletion:
    """Return a stored chat completion in OpenAI's shape."""
    request, completion = load_text(row.request), load_text(row.completion)
    parameters = {name: request[name] for name in PARAMETERS if request.get(name) is not None}
    own = {"id": row.id, "model": row.model, "metadata": row.client_metadata}
    created = {"created": int(row.created_at.timestamp()), "object": "chat.completion"}
    return ChatCompletion(
        **(created | parameters | completion | own), expires_at=int(row.expires_at.timestamp())
    )


def view_messages(row: StoredCompletion) -> list[StoredMessage]:
    """Return the messages of the request, in its order."""
    messages = load_text(row.request).get("messages") or []
    return [_view_message(f"{row.id}-{index}", message) for index, message in enumerate(messages)]


def _view_message(message_id: str, message: dict[str, Any]) -> StoredMessage:
    content = message.get("content")
    is_text = isinstance(content, str) or content is None
    own = {"content": content if is_text else None, "content_parts": None if is_text else content}
    return StoredMessage(**({"refusal": None} | message | own | {"id": message_id}))
