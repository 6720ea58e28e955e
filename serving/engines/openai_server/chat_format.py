"""Choices of /v1/chat/completions: text, and calls of tools that are read from it."""

from dataclasses import dataclass, field
from typing import Any

from serving.engines.decoding.sampling import TokenLogprob
from serving.engines.decoding.sequence import FinishReason, OutputChunk
from serving.engines.openai_server.response_shapes import Json, format_logprobs
from serving.engines.structured.calls.parser import (
    ArgumentsDelta,
    CallBegin,
    CallParser,
    OutputEvent,
    TextDelta,
)
from serving.engines.structured.output import CallMode, OutputPlan


@dataclass
class ChatChoice:
    """What is known of one choice: the parser of its calls, and how many there are."""

    parser: CallParser | None
    n_calls: int = 0

    def read(self, chunk: OutputChunk) -> list[OutputEvent]:
        """Return the events of a chunk's text."""
        if self.parser is None:
            return [TextDelta(chunk.text)] if chunk.text else []
        events = self.parser.push(chunk.text)
        return [*events, *self.parser.finish()] if chunk.finish_reason else events


@dataclass
class ChatFormat:
    """The choices of one response; a stream tells their deltas one after the other."""

    tokenizer: Any
    plan: OutputPlan
    object_type: str = "chat.completion"
    chunk_type: str = "chat.completion.chunk"
    choices: dict[int, ChatChoice] = field(default_factory=dict)

    def opening(self, index: int) -> Json | None:
        """Return a choice with the role, as OpenAI sends first."""
        return self._delta(index, {"role": "assistant", "content": ""})

    def deltas(self, index: int, chunk: OutputChunk) -> list[Json]:
        """Return a choice for each event of a chunk, and the last one for the finish reason."""
        choice = self._choice(index)
        deltas = [delta for event in choice.read(chunk) if (delta := self._format(choice, event)) is not None]
        if chunk.logprobs and not deltas:
            deltas.append({})
        choices = [self._delta(index, delta) for delta in deltas]
        if choices:
            choices[0]["logprobs"] = self._logprobs(chunk.logprobs)
        if chunk.finish_reason is not None:
            finish = self._finish_reason(choice, chunk.finish_reason)
            choices.append(self._delta(index, {}) | {"finish_reason": finish})
        return choices

    def choice(self, index: int, chunks: list[OutputChunk]) -> Json:
        """Return a choice of a plain response."""
        choice = self._choice(index)
        events = [event for chunk in chunks for event in choice.read(chunk)]
        calls: list[Json] = []
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        for event in events:
            if isinstance(event, CallBegin):
                choice.n_calls += 1
                calls.append(self._call(event.name))
            elif isinstance(event, ArgumentsDelta):
                calls[-1]["function"]["arguments"] += event.text
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        reason = chunks[-1].finish_reason
        assert reason is not None
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs([entry for chunk in chunks for entry in chunk.logprobs]),
            "finish_reason": self._finish_reason(choice, reason),
        }

    def _choice(self, index: int) -> ChatChoice:
        return self.choices.setdefault(index, ChatChoice(self.plan.make_parser()))

    def _format(self, choice: ChatChoice, event: OutputEvent) -> Json | None:
        """Return the delta of an event; None for one that has none."""
        if isinstance(event, TextDelta):
            return {"content": event.text}
        if isinstance(event, CallBegin):
            choice.n_calls += 1
            return {"tool_calls": [{"index": choice.n_calls - 1, **self._call(event.name)}]}
        if isinstance(event, ArgumentsDelta):
            return {"tool_calls": [{"index": choice.n_calls - 1, "function": {"arguments": event.text}}]}
        return None

    def _call(self, name: str) -> Json:
        function = {"name": name, "arguments": ""}
        return {"id": self.plan.new_call_id(), "type": "function", "function": function}

    def _finish_reason(self, choice: ChatChoice, reason: FinishReason) -> str:
        """Return `tool_calls` after calls that the model chose; as in OpenAI's API not after a named one."""
        called = choice.n_calls > 0 and reason is FinishReason.stop
        return "tool_calls" if called and self.plan.mode is not CallMode.named else reason

    def _delta(self, index: int, delta: Json) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, entries: list[TokenLogprob]) -> Json | None:
        return {"content": format_logprobs(self.tokenizer, entries), "refusal": None} if entries else None
