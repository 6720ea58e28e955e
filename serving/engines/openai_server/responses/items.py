"""The items of a response's output, and the events by which a stream transports them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from serving.engines.decoding.sampling import TokenLogprob
from serving.engines.openai_server.response_shapes import Json, format_logprobs

Events = list[tuple[str, Json]]
"""Names of events, and their fields besides those that place the item."""


class OutputItem(ABC):
    """An item, open until its last events."""

    id: str
    status: str

    @abstractmethod
    def json(self, status: str) -> Json:
        """Return the item; one in progress is still empty."""

    @abstractmethod
    def first_events(self) -> Events:
        """Return the events before the first text."""

    @abstractmethod
    def add(self, text: str, logprobs: list[TokenLogprob]) -> Events:
        """Add a text, and return its events."""

    @abstractmethod
    def last_events(self) -> Events:
        """Return the events after the last text."""


@dataclass
class MessageItem(OutputItem):
    """A message with one part, a text."""

    tokenizer: Any
    id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    status: str = "in_progress"
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def json(self, status: str) -> Json:
        """Return the message."""
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def first_events(self) -> Events:
        """Return the event of the part."""
        return [("response.content_part.added", {"content_index": 0, "part": self._part()})]

    def add(self, text: str, logprobs: list[TokenLogprob]) -> Events:
        """Add a text with its log-probabilities."""
        self.texts.append(text)
        self.logprobs += logprobs
        fields = {"content_index": 0, "delta": text, "logprobs": format_logprobs(self.tokenizer, logprobs)}
        return [("response.output_text.delta", fields)]

    def last_events(self) -> Events:
        """Return the events of the whole text and of the part."""
        part = self._part()
        text = {"content_index": 0, "text": part["text"], "logprobs": part["logprobs"]}
        return [
            ("response.output_text.done", text),
            ("response.content_part.done", {"content_index": 0, "part": part}),
        ]

    def _part(self) -> Json:
        logprobs = format_logprobs(self.tokenizer, self.logprobs)
        return {
            "type": "output_text",
            "text": "".join(self.texts),
            "annotations": [],
            "logprobs": logprobs,
        }


@dataclass
class CallItem(OutputItem):
    """A call of a function."""

    name: str
    call_id: str
    id: str = field(default_factory=lambda: f"fc_{uuid4().hex}")
    status: str = "in_progress"
    arguments: list[str] = field(default_factory=list)

    def json(self, status: str) -> Json:
        """Return the call."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self.arguments),
        }

    def first_events(self) -> Events:
        """Return no event: the item has no parts."""
        return []

    def add(self, text: str, logprobs: list[TokenLogprob]) -> Events:
        """Add a piece of the arguments."""
        self.arguments.append(text)
        return [("response.function_call_arguments.delta", {"delta": text})]

    def last_events(self) -> Events:
        """Return the event of the whole arguments."""
        fields = {"name": self.name, "arguments": "".join(self.arguments)}
        return [("response.function_call_arguments.done", fields)]
