"""Answers of OpenAI's Responses API: one message, told whole or by the events of its making."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import web

from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.decoding.sampling import SamplingParams
from serving.engines.decoding.sequence import FinishReason, OutputChunk
from serving.engines.openai_server.completions import find_served_model, make_sequence_params, send_response
from serving.engines.openai_server.prompts import render_chat
from serving.engines.openai_server.response_request import ResponseRequest
from serving.engines.openai_server.response_shapes import Json, format_logprobs, sse_event
from serving.engines.openai_server.schemas import parse_request

# What an answer ended with, in the words of this API.
STATUSES = {FinishReason.stop: "completed", FinishReason.length: "incomplete"}


async def create_response(http: web.Request, loop: GenerationLoop, base: ModelRunner) -> web.StreamResponse:
    """POST /v1/responses; raises ApiError before the answer has begun."""
    request = parse_request(ResponseRequest, await http.read())
    served = find_served_model(base, request.model)
    prompt = await asyncio.to_thread(render_chat, served, request.messages, request, "input")
    asks = make_sequence_params(base, served, request, [prompt], request.alternatives)
    told = Response(request, served.tokenizer, len(prompt), asks[0].sampling)
    return await send_response(http, loop, base, asks, told)


@dataclass
class Response:
    """One response and its only message, as far as they have come."""

    request: ResponseRequest
    tokenizer: Any
    input_tokens: int
    sampling: SamplingParams
    id: str = field(default_factory=lambda: f"resp_{uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    pieces: list[OutputChunk] = field(default_factory=list)
    events: int = 0

    def whole(self, gathered: list[list[OutputChunk]]) -> Json:
        self.pieces = gathered[0]
        return self._json()

    def opening(self) -> bytes:
        return (
            self._event("response.created", response=self._json())
            + self._event("response.in_progress", response=self._json())
            + self._event("response.output_item.added", output_index=0, item=self._message([]))
            + self._text_event("response.content_part.added", part=self._part())
        )

    def more(self, index: int, piece: OutputChunk) -> bytes:
        self.pieces.append(piece)
        if not piece.text and not piece.logprobs:
            return b""
        logprobs = format_logprobs(self.tokenizer, piece.logprobs)
        return self._text_event("response.output_text.delta", delta=piece.text, logprobs=logprobs)

    def closing(self) -> bytes:
        part = self._part()
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        return (
            self._text_event("response.output_text.done", **text)
            + self._text_event("response.content_part.done", part=part)
            + self._event("response.output_item.done", output_index=0, item=self._message([part]))
            + self._event(f"response.{self._status}", response=self._json())
        )

    @property
    def _status(self) -> str:
        finish = self.pieces[-1].finish if self.pieces else None
        return "in_progress" if finish is None else STATUSES[finish]

    def _event(self, kind: str, **further: Any) -> bytes:
        told = sse_event({"type": kind, "sequence_number": self.events, **further}, kind)
        self.events += 1
        return told

    def _text_event(self, kind: str, **further: Any) -> bytes:
        """An event of the message's only part."""
        return self._event(kind, item_id=self.message_id, output_index=0, content_index=0, **further)

    def _part(self) -> Json:
        text = "".join(piece.text for piece in self.pieces)
        logprobs = format_logprobs(
            self.tokenizer, [entry for piece in self.pieces for entry in piece.logprobs]
        )
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _message(self, content: list[Json]) -> Json:
        head = {"id": self.message_id, "type": "message", "status": self._status, "role": "assistant"}
        return {**head, "content": content}

    def _json(self) -> Json:
        """The response; its usage stands last, where a gateway may find it without reading the text."""
        ended = self._status != "in_progress"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": self._status,
            "background": False,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            **self._asked(),
            "output": [self._message([self._part()])] if ended else [],
            "usage": self._usage() if ended else None,
        }

    def _asked(self) -> Json:
        """The request's parameters, with the values that count where it has none."""
        request, callers = self.request, self.request.model_extra or {}
        return {
            "model": request.model,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": callers.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": callers.get("safety_identifier"),
            # Whatever was asked: nothing is kept.
            "store": False,
            "temperature": self.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": self.sampling.top_p,
            "truncation": "disabled",
            "user": callers.get("user"),
        }

    def _usage(self) -> Json:
        output_tokens = self.pieces[-1].completion_tokens
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + output_tokens,
        }
