"""One answer in the making: which tokens it has, what of it may be shown, and why it ended."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serving.engines.decoding.sampling import (
    SamplingParams,
    TokenLogprob,
    adjust_logits,
    make_generator,
    sample_token,
)
from serving.engines.decoding.served import ServedModel
from serving.engines.decoding.text import Detokenizer, StopMatcher


class FinishReason(StrEnum):
    """Why an answer ended, in OpenAI's words."""

    stop = "stop"
    length = "length"


@dataclass(frozen=True)
class OutputChunk:
    """What an answer has gained since the last piece; `finish` is set in the last one.

    `end_logprob` scores the token that ended the answer, which is not shown.
    """

    text: str
    logprobs: list[TokenLogprob]
    completion_tokens: int
    finish: FinishReason | None
    prompt_logprobs: list[TokenLogprob] | None = None
    end_logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class SequenceParams:
    """What one answer needs to know of its request."""

    served: ServedModel
    prompt_ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    seed: int
    stops: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: bool = False
    streaming: bool = False

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end the answer and are not shown."""
        return self.stop_token_ids | (frozenset() if self.ignore_eos else self.served.eos_ids)


@dataclass(eq=False)
class SequenceState:
    """An answer on its way; the generation thread owns it, and only `cancelled` is set from outside."""

    ask: SequenceParams
    emit: Callable[[OutputChunk], None]
    cancelled: bool = False
    finish: FinishReason | None = None
    output_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator: Any = make_generator(self.ask.seed)
        self.ends = self.ask.ends
        self.detokenizer = Detokenizer(
            self.ask.served.tokenizer, self.ask.prompt_ids, self.ask.skip_special_tokens
        )
        self.stops = StopMatcher(self.ask.stops)
        self.prompt_logprobs: list[TokenLogprob] | None = None
        self.decoded_characters = 0
        self.shown_characters = 0
        self.unsent_text = ""
        # Each entry waits with the place where its text begins, to leave with that text or be cut with it.
        self.waiting_logprobs: list[tuple[int, TokenLogprob]] = []

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.cancelled

    @property
    def newest(self) -> int:
        return self.output_ids[-1]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.ask.prompt_ids) + len(self.output_ids)

    def begin(self, prompt_logprobs: list[TokenLogprob] | None) -> None:
        """Note the prompt's scores; an answer of no tokens ends here."""
        self.prompt_logprobs = prompt_logprobs
        if self.ask.max_tokens == 0:
            self._end(FinishReason.length)

    def pick(self, likeliest: int, logits_v: Any) -> int:
        """The next token; a draw depends on the row's own logits and generator only."""
        sampling = self.ask.sampling
        banned = self.ends if len(self.output_ids) < self.ask.min_tokens else frozenset()
        if banned or sampling.adjusts:
            logits_v = adjust_logits(logits_v, sampling, self.ask.prompt_ids, self.output_ids, banned)
            likeliest = int(logits_v.argmax())
        return likeliest if sampling.greedy else sample_token(logits_v, sampling, self.generator)

    def accept(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take the next token, show what it completes, and end if it was the last."""
        self.output_ids.append(token)
        if token in self.ends:
            self._end(FinishReason.stop, logprob)
            return
        if logprob is not None:
            self.waiting_logprobs.append((self.decoded_characters, logprob))
        self._show(self.detokenizer.push(token))
        if self.stops.hit:
            self._end(FinishReason.stop)
        elif len(self.output_ids) >= self.ask.max_tokens:
            self._end(FinishReason.length)
        elif self.ask.streaming and self.unsent_text:
            self._send(None)

    def _show(self, text: str) -> None:
        self.decoded_characters += len(text)
        early = len(self.output_ids) <= self.ask.min_tokens
        visible = text if early else self.stops.push(text)
        self.shown_characters += len(visible)
        self.unsent_text += visible

    def _end(self, finish: FinishReason, end_logprob: TokenLogprob | None = None) -> None:
        if not self.stops.hit:
            self._show(self.detokenizer.flush())
        if self.stops.hit:
            finish, end_logprob = FinishReason.stop, None
            self.waiting_logprobs = [
                entry for entry in self.waiting_logprobs if entry[0] < self.shown_characters
            ]
        else:
            rest = self.stops.flush()
            self.shown_characters += len(rest)
            self.unsent_text += rest
        self.finish = finish
        self._send(finish, end_logprob)

    def _send(self, finish: FinishReason | None, end_logprob: TokenLogprob | None = None) -> None:
        ready = [e for at, e in self.waiting_logprobs if finish is not None or at < self.shown_characters]
        self.waiting_logprobs = self.waiting_logprobs[len(ready) :]
        counted = len(self.output_ids)
        self.emit(OutputChunk(self.unsent_text, ready, counted, finish, self.prompt_logprobs, end_logprob))
        self.unsent_text, self.prompt_logprobs = "", None
