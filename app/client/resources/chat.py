"""Chats with deployed models, by the OpenAI-compatible endpoint."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx2
from pydantic import Field

from app.client.api.connection import Connection
from app.client.api.errors import ServerUnreachable, ServiceFailure
from app.client.views.base import ApiView

CHAT_PATH = "/v1/chat/completions"
# The first request to a sleeping deployment waits for its engine.
CHAT_TIMEOUT_SECONDS = 600.0
Messages = str | Sequence[Mapping[str, Any]]


class ChatReply(ApiView):
    """The completion of a chat; `raw` is the response as OpenAI's API has it."""

    text: str
    model: str
    finish_reason: str | None = None
    usage: dict[str, Any] = Field({})
    raw: dict[str, Any]

    def __str__(self) -> str:
        """Return the text."""
        return self.text


async def complete_chat(
    connection: Connection, model: str, messages: Messages, options: Mapping[str, Any]
) -> ChatReply:
    """Return the completion of a chat."""
    body = {"model": model, "messages": as_messages(messages), **options}
    response = await connection.request(
        "POST", CHAT_PATH, json=body, repeatable=True, timeout=CHAT_TIMEOUT_SECONDS
    )
    raw = response.json()
    choice = raw["choices"][0]
    return ChatReply(
        text=choice["message"].get("content") or "",
        model=raw["model"],
        finish_reason=choice.get("finish_reason"),
        usage=raw.get("usage") or {},
        raw=raw,
    )


async def stream_chat(
    connection: Connection, model: str, messages: Messages, options: Mapping[str, Any]
) -> AsyncIterator[str]:
    """Yield the text of a completion as it is generated; an interruption raises, since none can continue."""
    body = {"model": model, "messages": as_messages(messages), **options, "stream": True}
    request = connection.build("POST", CHAT_PATH, json=body, timeout=CHAT_TIMEOUT_SECONDS)
    response = await connection.open(request)
    try:
        async with aclosing(connection.transport.events(response)) as events:
            async for event in events:
                if event.data == "[DONE]":
                    return
                chunk: Any = event.json()
                if "error" in chunk:
                    error = chunk["error"]
                    raise ServiceFailure(str(error["message"]), code=str(error.get("code") or ""))
                for choice in chunk["choices"][:1]:
                    if text := choice["delta"].get("content"):
                        yield text
        raise ServerUnreachable("The completion was interrupted.", "Send the chat again.")
    except httpx2.TransportError as failure:
        raise ServerUnreachable(f"The completion was interrupted: {failure}.", "Send it again.") from failure
    finally:
        await connection.transport.release(response)


def as_messages(messages: Messages) -> list[dict[str, Any]]:
    """Return a chat: a text is the message of a user."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [dict(message) for message in messages]
