"""OpenAI's response objects for chats and completions, plain or as a stream of events."""

import json
import time
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from serving.engines.decoding.sampling import TokenLogprob
from serving.engines.decoding.sequence import OutputChunk
from serving.engines.decoding.text import REPLACEMENT, decode, token_bytes, token_text
from serving.http.errors import ApiError

Json = dict[str, Any]


@dataclass
class TokenUsage:
    """The token counts of a whole request."""

    prompt_tokens: int
    completion_tokens: int = 0

    def json(self) -> Json:
        """Return OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class ResponseWriter(Protocol):
    """The response to one request, as one object or as the events of a stream."""

    def whole(self, chunks: list[list[OutputChunk]]) -> Json:
        """Return the plain response, given all chunks of each sequence."""

    def opening(self) -> bytes:
        """Return the first events of a stream."""

    def events(self, index: int, chunk: OutputChunk) -> bytes:
        """Return the events of a chunk of one sequence; may be empty."""

    def closing(self) -> bytes:
        """Return the last events of a stream, after the last chunk of every sequence."""

    def failure(self, error: ApiError) -> bytes:
        """Return the last events of a stream that fails."""


class ChoiceFormat(Protocol):
    """The format of the choices of one endpoint."""

    @property
    def object_type(self) -> str:
        """The `object` of a plain response."""

    @property
    def chunk_type(self) -> str:
        """The `object` of a stream's chunk."""

    def opening(self, index: int) -> Json | None:
        """Return the choice of a stream's first chunk, if the format has one."""

    def deltas(self, index: int, chunk: OutputChunk) -> list[Json]:
        """Return the choices of a stream's chunks, each to be sent in an event of its own."""

    def choice(self, index: int, chunks: list[OutputChunk]) -> Json:
        """Return a choice of a plain response."""


@dataclass
class ResponseEnvelope:
    """The fields around the choices, which are the same in every chunk of a stream."""

    prefix: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid4().hex}"

    def wrap(self, object_type: str, choices: list[Json], **fields: Any) -> Json:
        """Return the whole object."""
        head = {"id": self.id, "object": object_type, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **fields}


@dataclass
class ChoicesWriter:
    """The responses of chats and completions, with one choice for each sequence."""

    format: ChoiceFormat
    envelope: ResponseEnvelope
    usage: TokenUsage
    count: int
    include_usage: bool

    def whole(self, chunks: list[list[OutputChunk]]) -> Json:
        """Return the plain response."""
        self.usage.completion_tokens = sum(choice[-1].completion_tokens for choice in chunks)
        choices = [self.format.choice(index, choice) for index, choice in enumerate(chunks)]
        return self.envelope.wrap(self.format.object_type, choices, usage=self.usage.json())

    def opening(self) -> bytes:
        """Return the first chunk of each choice, if the format has one."""
        openings = [self.format.opening(index) for index in range(self.count)]
        return b"".join(self._event([opening]) for opening in openings if opening is not None)

    def events(self, index: int, chunk: OutputChunk) -> bytes:
        """Return the events of a chunk."""
        self.usage.completion_tokens += chunk.completion_tokens if chunk.finish_reason else 0
        return b"".join(self._event([delta]) for delta in self.format.deltas(index, chunk))

    def closing(self) -> bytes:
        """Return the usage, if asked for, and the end marker."""
        usage = self._event([], usage=self.usage.json()) if self.include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def failure(self, error: ApiError) -> bytes:
        """Return the error, without an end marker after it."""
        return b"data: " + error.body() + b"\n\n"

    def _event(self, choices: list[Json], **fields: Any) -> bytes:
        return sse_event(self.envelope.wrap(self.format.chunk_type, choices, **fields))


@dataclass
class CompletionFormat:
    """Choices of /v1/completions; with `echo`, each choice begins with its prompt."""

    tokenizer: Any
    prompts: list[list[int]]
    echo: bool
    scored: bool
    choices_per_prompt: int
    with_token_ids: bool = False
    object_type: str = "text_completion"
    chunk_type: str = "text_completion"
    # The position of the next token of each choice in its text; OpenAI counts the echoed prompt.
    offsets: dict[int, int] = field(default_factory=dict)

    def opening(self, index: int) -> Json | None:
        """Return None: this format has no first chunk."""
        return None

    def deltas(self, index: int, chunk: OutputChunk) -> list[Json]:
        """Return the choice of a stream's chunk, and as OpenAI does another for its finish reason."""
        choice = self._choice(index, chunk)
        if chunk.finish_reason is None:
            return [choice]
        ends_with_text = choice["text"] or (choice["logprobs"] or {}).get("tokens")
        last = choice | {"text": "", "logprobs": None}
        return [choice | {"finish_reason": None}, last] if ends_with_text else [last]

    def _choice(self, index: int, chunk: OutputChunk) -> Json:
        # Only the first chunk of a sequence has the prompt's scores, and only it may echo the prompt.
        first = index not in self.offsets
        echoed = decode(self.tokenizer, self._prompt_ids(index)) if self.echo and first else ""
        self.offsets.setdefault(index, 0)
        return {
            "index": index,
            "text": echoed + chunk.text,
            "logprobs": self._logprobs(index, chunk, first) if self.scored else None,
            "finish_reason": chunk.finish_reason,
        }

    def choice(self, index: int, chunks: list[OutputChunk]) -> Json:
        """Return a choice of a plain response."""
        whole = OutputChunk(
            "".join(chunk.text for chunk in chunks),
            [entry for chunk in chunks for entry in chunk.logprobs],
            chunks[-1].completion_tokens,
            chunks[-1].finish_reason,
            chunks[0].prompt_logprobs,
            chunks[-1].end_logprob,
        )
        ids = {"prompt_token_ids": self._prompt_ids(index), "token_ids": list(chunks[-1].token_ids)}
        return self._choice(index, whole) | (ids if self.with_token_ids else {})

    def _prompt_ids(self, index: int) -> list[int]:
        return self.prompts[index // self.choices_per_prompt]

    def _logprobs(self, index: int, chunk: OutputChunk, first: bool) -> Json:
        # An evaluation harness asks for one token and drops the last entry: without the end token, it would
        # drop a token of the text that it scores. OpenAI's chats leave the end token out, and so do ours.
        generated = [*chunk.logprobs, chunk.end_logprob] if chunk.end_logprob else chunk.logprobs
        entries: list[TokenLogprob | None] = list(generated)
        tokens = [entry.token for entry in generated]
        if self.echo and first:
            # Nothing precedes the first token, so it has no log-probability.
            entries = [None, *(chunk.prompt_logprobs or []), *entries]
            tokens = [*self._prompt_ids(index), *tokens]
        return {
            "tokens": [self._token_key(token) for token in tokens],
            "token_logprobs": [entry and entry.logprob for entry in entries],
            "top_logprobs": [entry and self._top_logprobs(entry) for entry in entries],
            "text_offset": self._text_offsets(index, tokens),
        }

    def _top_logprobs(self, entry: TokenLogprob) -> dict[str, float]:
        # Of two tokens with the same text the more likely one is kept; the selected token is always included.
        top: dict[str, float] = {}
        for token, value in [*entry.top, (entry.token, entry.logprob)]:
            top.setdefault(self._token_key(token), value)
        return top

    def _token_key(self, token: int) -> str:
        # All incomplete characters decode to U+FFFD. With that as the key, a score could be taken for the
        # most likely token's, so these tokens are named by their bytes, as in OpenAI's API.
        text = token_text(self.tokenizer, token)
        if REPLACEMENT not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes(self.tokenizer, token))

    def _text_offsets(self, index: int, tokens: list[int]) -> list[int]:
        offsets = []
        for token in tokens:
            offsets.append(self.offsets[index])
            # Count a character at its first byte; 10xxxxxx is a continuation byte of UTF-8.
            raw = token_bytes(self.tokenizer, token)
            self.offsets[index] += sum(byte & 0xC0 != 0x80 for byte in raw)
        return offsets


def format_logprobs(tokenizer: Any, entries: list[TokenLogprob]) -> list[Json]:
    """Return OpenAI's log-probability objects, with the bytes of each token."""

    def format_token(token: int, logprob: float) -> Json:
        return {
            "token": token_text(tokenizer, token),
            "logprob": logprob,
            "bytes": token_bytes(tokenizer, token),
        }

    return [
        format_token(entry.token, entry.logprob)
        | {"top_logprobs": [format_token(token, value) for token, value in entry.top]}
        for entry in entries
    ]


def encode_json(data: Json) -> bytes:
    """Encode JSON without escapes, which would double the size of Korean text."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def sse_event(data: Json, name: str | None = None) -> bytes:
    """Encode a server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + encode_json(data) + b"\n\n"
