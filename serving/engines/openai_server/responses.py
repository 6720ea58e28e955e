"""OpenAI's Responses API: responses with one message, plain or as a stream of events."""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import web

from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.decoding.sampling import SamplingParams
from serving.engines.decoding.sequence import FinishReason, OutputChunk
from serving.engines.openai_server.completions import (
    check_room,
    find_served_model,
    make_sequence_params,
    send_response,
)
from serving.engines.openai_server.edges import read_body
from serving.engines.openai_server.prompt_queue import PROMPT_QUEUE
from serving.engines.openai_server.prompts import chat_token_ids
from serving.engines.openai_server.response_request import ResponseRequest
from serving.engines.openai_server.response_shapes import Json, format_logprobs, sse_event
from serving.engines.openai_server.schemas import parse_request

# The statuses of this API by finish reason.
STATUSES = {FinishReason.stop: "completed", FinishReason.length: "incomplete"}


async def create_response(http: web.Request, loop: GenerationLoop, runner: ModelRunner) -> web.StreamResponse:
    """Respond to POST /v1/responses. Raises ApiError before the response has begun."""
    body = await read_body(http)
    request = parse_request(ResponseRequest, body)
    served = find_served_model(runner, request.model)
    check_room(loop, 1)
    prompt_ids = await http.app[PROMPT_QUEUE].run(
        lambda worker: chat_token_ids(
            worker, served, runner.max_model_len, request.messages, request, "input"
        ),
        len(body),
    )
    sequences = make_sequence_params(runner, served, request, [prompt_ids], request.n_logprobs)
    writer = ResponsesWriter(request, served.tokenizer, len(prompt_ids), sequences[0].sampling)
    return await send_response(http, loop, runner, sequences, writer)


@dataclass
class ResponsesWriter:
    """A response with one message, and the chunks received so far."""

    request: ResponseRequest
    tokenizer: Any
    input_tokens: int
    sampling: SamplingParams
    id: str = field(default_factory=lambda: f"resp_{uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    chunks: list[OutputChunk] = field(default_factory=list)
    n_events: int = 0

    def whole(self, chunks: list[list[OutputChunk]]) -> Json:
        """Return the plain response."""
        self.chunks = chunks[0]
        return self._response()

    def opening(self) -> bytes:
        """Return the events before the first text."""
        return (
            self._event("response.created", response=self._response())
            + self._event("response.in_progress", response=self._response())
            + self._event("response.output_item.added", output_index=0, item=self._message([]))
            + self._text_event("response.content_part.added", part=self._text_part())
        )

    def events(self, index: int, chunk: OutputChunk) -> bytes:
        """Return the event of a chunk with text or log-probabilities."""
        self.chunks.append(chunk)
        if not chunk.text and not chunk.logprobs:
            return b""
        logprobs = format_logprobs(self.tokenizer, chunk.logprobs)
        return self._text_event("response.output_text.delta", delta=chunk.text, logprobs=logprobs)

    def closing(self) -> bytes:
        """Return the events after the last text."""
        part = self._text_part()
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        return (
            self._text_event("response.output_text.done", **text)
            + self._text_event("response.content_part.done", part=part)
            + self._event("response.output_item.done", output_index=0, item=self._message([part]))
            + self._event(f"response.{self._status}", response=self._response())
        )

    @property
    def _status(self) -> str:
        reason = self.chunks[-1].finish_reason if self.chunks else None
        return "in_progress" if reason is None else STATUSES[reason]

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = sse_event({"type": kind, "sequence_number": self.n_events, **fields}, kind)
        self.n_events += 1
        return event

    def _text_event(self, kind: str, **fields: Any) -> bytes:
        """Return an event of the message's only part."""
        return self._event(kind, item_id=self.message_id, output_index=0, content_index=0, **fields)

    def _text_part(self) -> Json:
        text = "".join(chunk.text for chunk in self.chunks)
        entries = [entry for chunk in self.chunks for entry in chunk.logprobs]
        logprobs = format_logprobs(self.tokenizer, entries)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _message(self, content: list[Json]) -> Json:
        head = {"id": self.message_id, "type": "message", "status": self._status, "role": "assistant"}
        return {**head, "content": content}

    def _response(self) -> Json:
        """Return the response; usage is its last field, where a gateway finds it without parsing the text."""
        finished = self._status != "in_progress"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": self._status,
            "background": False,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            **self._request_parameters(),
            "output": [self._message([self._text_part()])] if finished else [],
            "usage": self._usage() if finished else None,
        }

    def _request_parameters(self) -> Json:
        """Return the request's parameters, with the values in effect where it has none."""
        request, extra = self.request, self.request.model_extra or {}
        return {
            "model": request.model,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": extra.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": extra.get("safety_identifier"),
            # False whatever the request says: responses are not stored.
            "store": False,
            "temperature": self.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": self.sampling.top_p,
            "truncation": "disabled",
            "user": extra.get("user"),
        }

    def _usage(self) -> Json:
        output_tokens = self.chunks[-1].completion_tokens
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + output_tokens,
        }
