"""The response to a request, as one object or as a stream of events: its output is a list of items."""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from serving.engines.decoding.sampling import SamplingParams, TokenLogprob
from serving.engines.decoding.sequence import FinishReason, OutputChunk
from serving.engines.openai_server.response_shapes import Json, sse_event
from serving.engines.openai_server.responses.items import CallItem, MessageItem, OutputItem
from serving.engines.openai_server.responses.request import ResponseRequest
from serving.engines.structured.calls.parser import ArgumentsDelta, CallBegin, OutputEvent, TextDelta
from serving.engines.structured.output import OutputPlan
from serving.http.errors import ApiError

# The statuses of this API by finish reason.
STATUSES = {FinishReason.stop: "completed", FinishReason.length: "incomplete"}


@dataclass
class ResponsesWriter:
    """A response, and what has been received of it so far."""

    request: ResponseRequest
    tokenizer: Any
    input_tokens: int
    sampling: SamplingParams
    plan: OutputPlan
    id: str = field(default_factory=lambda: f"resp_{uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    items: list[OutputItem] = field(default_factory=list)
    output_tokens: int = 0
    status: str = "in_progress"
    n_events: int = 0

    def __post_init__(self) -> None:
        self.parser = self.plan.make_parser()

    def whole(self, chunks: list[list[OutputChunk]]) -> Json:
        """Return the plain response."""
        for chunk in chunks[0]:
            self.events(0, chunk)
        self.closing()
        return self._response()

    def opening(self) -> bytes:
        """Return the events before the first text; where no tool can be called, the message is certain."""
        created = self._event("response.created", response=self._response())
        created += self._event("response.in_progress", response=self._response())
        return created + (self._open(MessageItem(self.tokenizer)) if self.parser is None else b"")

    def events(self, index: int, chunk: OutputChunk) -> bytes:
        """Return the events of a chunk."""
        if self.parser is None:
            found: list[OutputEvent] = [TextDelta(chunk.text)] if chunk.text or chunk.logprobs else []
        else:
            found = self.parser.push(chunk.text)
            if chunk.finish_reason is not None:
                found += self.parser.finish()
        # One chunk may have several texts; its log-probabilities belong to the first.
        first_text = next((event for event in found if isinstance(event, TextDelta)), None)
        sent = b"".join(self._handle(event, chunk.logprobs if event is first_text else []) for event in found)
        if chunk.finish_reason is not None:
            self.status, self.output_tokens = STATUSES[chunk.finish_reason], chunk.completion_tokens
        return sent

    def closing(self) -> bytes:
        """Return the events after the last text."""
        opened = b"" if self.items else self._open(MessageItem(self.tokenizer))
        return (
            opened
            + self._close(self.status)
            + self._event(f"response.{self.status}", response=self._response())
        )

    def failure(self, error: ApiError) -> bytes:
        """Return the event of an error, which ends a stream."""
        fields = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", **fields, error={**fields, "type": error.type})

    def _handle(self, event: OutputEvent, logprobs: list[TokenLogprob]) -> bytes:
        if isinstance(event, CallBegin):
            return self._close("completed") + self._open(CallItem(event.name, self.plan.new_call_id()))
        if isinstance(event, ArgumentsDelta):
            return self._send(self.items[-1].add(event.text, []))
        if not isinstance(event, TextDelta):
            return b""
        opened = b""
        if not self.items or not isinstance(self.items[-1], MessageItem):
            opened = self._close("completed") + self._open(MessageItem(self.tokenizer))
        return opened + self._send(self.items[-1].add(event.text, logprobs))

    def _open(self, item: OutputItem) -> bytes:
        self.items.append(item)
        added = self._event(
            "response.output_item.added", output_index=self._index, item=item.json("in_progress")
        )
        return added + self._send(item.first_events())

    def _close(self, status: str) -> bytes:
        """Return the last events of the open item, if there is one."""
        if not self.items:
            return b""
        item = self.items[-1]
        item.status = status
        sent = self._send(item.last_events())
        return sent + self._event(
            "response.output_item.done", output_index=self._index, item=item.json(status)
        )

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _send(self, events: list[tuple[str, Json]]) -> bytes:
        """Return events of the open item."""
        return b"".join(
            self._event(kind, item_id=self.items[-1].id, output_index=self._index, **fields)
            for kind, fields in events
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = sse_event({"type": kind, "sequence_number": self.n_events, **fields}, kind)
        self.n_events += 1
        return event

    def _response(self) -> Json:
        """Return the response; usage is its last field, where a gateway finds it without parsing the text."""
        finished = self.status != "in_progress"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": self.status,
            "background": False,
            "completed_at": int(time.time()) if self.status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            **self.request.parameters_in_effect(self.sampling),
            "output": [item.json(item.status) for item in self.items] if finished else [],
            "usage": self._usage() if finished else None,
        }

    def _usage(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + self.output_tokens,
        }
