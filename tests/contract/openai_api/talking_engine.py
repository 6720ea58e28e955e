"""A stand-in for an engine that completes chats and responses with the text of the last message.

All its ids are the same, as those of several engines may be.
"""

import json
from typing import Any

from aiohttp import web

from tests.integration.serving.fake_engine import FakeEngine, response_event

CHAT_ID, RESPONSE_ID = "chatcmpl-same", "resp_same"


class TalkingEngine(FakeEngine):
    """Serves the models `talk`, and `cut-talk`, whose streams break in the middle."""

    async def talk(self, request: web.Request) -> web.StreamResponse:
        """Complete with the last text, in two parts if it is streamed."""
        body = await request.json()
        is_chat = request.path.endswith("completions")
        if not body.get("stream"):
            return web.json_response(completion(body) if is_chat else response(body))
        stream = await self._stream(request)
        await stream.write(b"".join(chat_events(body) if is_chat else response_events(body)))
        return stream

    async def text_error(self, request: web.Request) -> web.Response:
        """Fail as a web framework does."""
        return web.Response(status=500, text="Internal Server Error: details of the engine")

    async def detail_error(self, request: web.Request) -> web.Response:
        """Refuse as a web framework does."""
        return web.json_response({"detail": [{"msg": "details of the engine"}]}, status=422)

    async def cut_talk(self, request: web.Request) -> web.StreamResponse:
        """End the stream before its last event."""
        stream = await self._stream(request)
        events = chat_events(await request.json())
        await stream.write(b"".join(events[:2]))
        return stream


def last_text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"] if "messages" in body else body["input"]
    if isinstance(content, list):
        content = content[-1].get("content", content[-1].get("text"))
    if isinstance(content, list):
        content = content[-1]["text"]
    return str(content)


def completion(body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": last_text(body), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": CHAT_ID,
        "object": "chat.completion",
        "created": 1,
        "model": "talk",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }


def chat_events(body: dict[str, Any]) -> list[bytes]:
    text = last_text(body)
    middle = len(text) // 2
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    deltas: list[Any] = [
        {"role": "assistant", "content": ""},
        {"content": text[:middle]},
        {"content": text[middle:]},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {},
    ]
    head = {"id": CHAT_ID, "object": "chat.completion.chunk", "created": 1, "model": "talk"}
    chunks = [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]}
        for delta in deltas
    ]
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        chunks.append(head | {"choices": [], "usage": usage})
    return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks] + [b"data: [DONE]\n\n"]


def response(body: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    part = {"type": "output_text", "text": last_text(body), "annotations": [], "logprobs": []}
    message = {"id": "msg_same", "type": "message", "status": status, "role": "assistant", "content": [part]}
    return {
        "id": RESPONSE_ID,
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": "talk",
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": bool(body.get("store")),
        "tool_choice": "auto",
        "tools": [],
        "output": [message] if status == "completed" else [],
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 8,
        },
    }


def response_events(body: dict[str, Any]) -> list[bytes]:
    place = {"item_id": "msg_same", "output_index": 0, "content_index": 0}
    delta = {**place, "delta": last_text(body), "logprobs": []}
    item = response(body)["output"][0]
    return [
        response_event("response.created", 0, response=response(body, "in_progress")),
        response_event("response.output_item.added", 1, output_index=0, item=item | {"content": []}),
        response_event("response.content_part.added", 2, **place, part=item["content"][0] | {"text": ""}),
        response_event("response.output_text.delta", 3, **delta),
        response_event("response.completed", 4, response=response(body)),
    ]
