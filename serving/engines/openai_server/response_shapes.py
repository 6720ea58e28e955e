"""How answers are told: whole or as a stream, and in OpenAI's shapes for chats and for completions."""

import json
import time
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from serving.engines.decoding.sampling import TokenLogprob
from serving.engines.decoding.sequence import OutputChunk
from serving.engines.decoding.text import REPLACEMENT, decode, token_bytes, token_text

Json = dict[str, Any]


@dataclass
class TokenUsage:
    """Tokens of a whole request."""

    prompt_tokens: int
    completion_tokens: int = 0

    def json(self) -> Json:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class ResponseWriter(Protocol):
    """How one request's answer is told, whole or as a stream; the bytes of a call leave in one write."""

    def whole(self, gathered: list[list[OutputChunk]]) -> Json:
        """The plain answer, from the pieces of each ask."""

    def opening(self) -> bytes:
        """What a stream begins with."""

    def more(self, index: int, piece: OutputChunk) -> bytes:
        """What a stream says of a further piece; nothing where it has nothing to say."""

    def closing(self) -> bytes:
        """What a stream ends with, once every ask has had its last piece."""


class ChoiceFormat(Protocol):
    """How an endpoint words the choices of an answer."""

    @property
    def plain(self) -> str: ...
    @property
    def chunk(self) -> str: ...
    def opening(self, index: int) -> Json | None:
        """A stream's first chunk for a choice, if it has one."""

    def delta(self, index: int, piece: OutputChunk) -> Json:
        """A choice of a stream's chunk."""

    def choice(self, index: int, pieces: list[OutputChunk]) -> Json:
        """A choice of a plain answer."""


@dataclass
class ResponseEnvelope:
    """The fields around the choices, the same in every chunk of a stream."""

    prefix: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid4().hex}"

    def wrap(self, kind: str, choices: list[Json], **further: Any) -> Json:
        """The whole object."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **further}


@dataclass
class ChoicesWriter:
    """The answers of chats and completions: one choice for each ask."""

    shape: ChoiceFormat
    envelope: ResponseEnvelope
    usage: TokenUsage
    count: int
    include_usage: bool

    def whole(self, gathered: list[list[OutputChunk]]) -> Json:
        self.usage.completion_tokens = sum(pieces[-1].completion_tokens for pieces in gathered)
        choices = [self.shape.choice(index, pieces) for index, pieces in enumerate(gathered)]
        return self.envelope.wrap(self.shape.plain, choices, usage=self.usage.json())

    def opening(self) -> bytes:
        openings = [self.shape.opening(index) for index in range(self.count)]
        return b"".join(self._chunk([opening]) for opening in openings if opening is not None)

    def more(self, index: int, piece: OutputChunk) -> bytes:
        self.usage.completion_tokens += piece.completion_tokens if piece.finish else 0
        return self._chunk([self.shape.delta(index, piece)])

    def closing(self) -> bytes:
        usage = self._chunk([], self.usage.json()) if self.include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def _chunk(self, choices: list[Json], usage: Json | None = None) -> bytes:
        told = {"usage": usage} if self.include_usage else {}
        return sse_event(self.envelope.wrap(self.shape.chunk, choices, **told))


@dataclass(frozen=True)
class ChatFormat:
    """POST /v1/chat/completions."""

    tokenizer: Any
    plain: str = "chat.completion"
    chunk: str = "chat.completion.chunk"

    def opening(self, index: int) -> Json | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def delta(self, index: int, piece: OutputChunk) -> Json:
        content = {"content": piece.text} if piece.text else {}
        return {
            "index": index,
            "delta": content,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }

    def choice(self, index: int, pieces: list[OutputChunk]) -> Json:
        text = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs([entry for piece in pieces for entry in piece.logprobs]),
            "finish_reason": pieces[-1].finish,
        }

    def _logprobs(self, entries: list[TokenLogprob]) -> Json | None:
        return {"content": format_logprobs(self.tokenizer, entries), "refusal": None} if entries else None


@dataclass
class CompletionFormat:
    """POST /v1/completions; with `echo`, each choice starts with its prompt."""

    tokenizer: Any
    prompts: list[list[int]]
    echo: bool
    scored: bool
    choices_each: int
    plain: str = "text_completion"
    chunk: str = "text_completion"
    # Where the next token of each choice begins; OpenAI counts the echoed prompt.
    offsets: dict[int, int] = field(default_factory=dict)

    def opening(self, index: int) -> Json | None:
        return None

    def delta(self, index: int, piece: OutputChunk) -> Json:
        # Only the first piece of an answer carries the prompt's scores, and only it may carry the prompt.
        first = index not in self.offsets
        echoed = self._prompt_text(index) if self.echo and first else ""
        self.offsets.setdefault(index, 0)
        return {
            "index": index,
            "text": echoed + piece.text,
            "logprobs": self._logprobs(index, piece, first) if self.scored else None,
            "finish_reason": piece.finish,
        }

    def choice(self, index: int, pieces: list[OutputChunk]) -> Json:
        whole = OutputChunk(
            "".join(piece.text for piece in pieces),
            [entry for piece in pieces for entry in piece.logprobs],
            pieces[-1].completion_tokens,
            pieces[-1].finish,
            pieces[0].prompt_logprobs,
            pieces[-1].end_logprob,
        )
        return self.delta(index, whole)

    def _prompt_ids(self, index: int) -> list[int]:
        return self.prompts[index // self.choices_each]

    def _prompt_text(self, index: int) -> str:
        return decode(self.tokenizer, self._prompt_ids(index))

    def _logprobs(self, index: int, piece: OutputChunk, first: bool) -> Json:
        # A harness asks for one token and drops the last entry: without the token that ends an answer, it
        # would drop one of the text that it scores. OpenAI's chats leave it out, so ours do as well.
        generated = [*piece.logprobs, piece.end_logprob] if piece.end_logprob else piece.logprobs
        entries: list[TokenLogprob | None] = list(generated)
        tokens = [entry.token for entry in generated]
        if self.echo and first:
            # The first token has nothing before it that could predict it.
            entries = [None, *(piece.prompt_logprobs or []), *entries]
            tokens = [*self._prompt_ids(index), *tokens]
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": [entry and entry.logprob for entry in entries],
            "top_logprobs": [entry and self._top(entry) for entry in entries],
            "text_offset": self._text_offsets(index, tokens),
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        # Two tokens may share a text; the likelier keeps it, and the chosen token is always there.
        top: dict[str, float] = {}
        for token, value in [*entry.top, (entry.token, entry.logprob)]:
            top.setdefault(self._name(token), value)
        return top

    def _name(self, token: int) -> str:
        # All pieces of characters decode to U+FFFD. Under one key a score would seem to be the likeliest
        # token's, so they are told apart by their bytes, as OpenAI does.
        text = token_text(self.tokenizer, token)
        if REPLACEMENT not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes(self.tokenizer, token))

    def _text_offsets(self, index: int, tokens: list[int]) -> list[int]:
        offsets = []
        for token in tokens:
            offsets.append(self.offsets[index])
            # A character counts at its first byte; 10xxxxxx continues one.
            raw = token_bytes(self.tokenizer, token)
            self.offsets[index] += sum(byte & 0xC0 != 0x80 for byte in raw)
        return offsets


def format_logprobs(tokenizer: Any, entries: list[TokenLogprob]) -> list[Json]:
    """Log probabilities token by token, each with its bytes and the likeliest beside it."""

    def entry(token: int, logprob: float) -> Json:
        text, raw = token_text(tokenizer, token), token_bytes(tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": raw}

    return [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in entries
    ]


def encode_json(data: Json) -> bytes:
    """JSON without escapes, which would double the size of Korean."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def sse_event(data: Json, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + encode_json(data) + b"\n\n"
