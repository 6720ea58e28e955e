"""The state of one completion: its tokens, the text that can be emitted, and its finish reason."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serving.engines.decoding.sampling import (
    SamplingParams,
    TokenLogprob,
    adjust_logits,
    make_generator,
    mask_logits,
    sample_token,
    sampling_probabilities,
)
from serving.engines.decoding.served import ServedModel
from serving.engines.decoding.text import Detokenizer, StopMatcher
from serving.engines.structured.constraint import Constraint, ConstraintState


class FinishReason(StrEnum):
    """The reason why a completion ended, as in OpenAI's API."""

    stop = "stop"
    length = "length"
    failed = "failed"
    """The completion cannot be continued; no response contains this reason."""


@dataclass(frozen=True)
class OutputChunk:
    """The text and tokens that a completion gained since the last chunk.

    `finish_reason` is set in the last chunk; `end_logprob` scores the end token, which has no text. `error`
    is why a completion has failed. `token_ids` are all tokens of the completion, in its last chunk.
    """

    text: str
    logprobs: list[TokenLogprob]
    completion_tokens: int
    finish_reason: FinishReason | None
    prompt_logprobs: list[TokenLogprob] | None = None
    end_logprob: TokenLogprob | None = None
    error: str | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class SequenceParams:
    """The prompt and parameters of one completion."""

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
    stream: bool = False
    constraint: Constraint | None = None

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end the completion and have no text."""
        return self.stop_token_ids | (frozenset() if self.ignore_eos else self.served.eos_ids)


@dataclass(eq=False)
class SequenceState:
    """A completion in progress; the generation thread owns it, and only `cancelled` is set from outside.

    `emit` is called in the generation thread with each chunk.
    """

    params: SequenceParams
    emit: Callable[[OutputChunk], None]
    cancelled: bool = False
    finish_reason: FinishReason | None = None
    output_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator: Any = make_generator(self.params.seed)
        self.end_ids = self.params.end_ids
        self.detokenizer = Detokenizer(
            self.params.served.tokenizer, self.params.prompt_ids, self.params.skip_special_tokens
        )
        self.stop_matcher = StopMatcher(self.params.stops)
        constraint = self.params.constraint
        self.constraint = None if constraint is None else ConstraintState(constraint)
        self.error: str | None = None
        self.prompt_logprobs: list[TokenLogprob] | None = None
        self.adjusted_logits_v: Any = None
        self.decoded_characters = 0
        self.visible_characters = 0
        self.pending_text = ""
        # Each entry keeps the position where its text begins, to be sent or cut together with that text.
        self.pending_logprobs: list[tuple[int, TokenLogprob]] = []

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.cancelled

    @property
    def last_token(self) -> int:
        return self.output_ids[-1]

    @property
    def length(self) -> int:
        """The number of tokens of prompt and completion."""
        return len(self.params.prompt_ids) + len(self.output_ids)

    def begin(self, prompt_logprobs: list[TokenLogprob] | None) -> None:
        """Store the prompt's scores; a completion with `max_tokens=0` ends here."""
        self.prompt_logprobs = prompt_logprobs
        if self.params.max_tokens == 0:
            self._finish(FinishReason.length)

    def select_token(self, most_likely: int, logits_v: Any) -> int | None:
        """Select the next token from the logits (v); sampling depends on this sequence alone.

        Return None if no token may follow.
        """
        sampling = self.params.sampling
        banned = self.end_ids if len(self.output_ids) < self.params.min_tokens else frozenset()
        if banned or sampling.adjusts_logits:
            logits_v = adjust_logits(logits_v, sampling, self.params.prompt_ids, self.output_ids, banned)
            most_likely = int(logits_v.argmax())
        if self.constraint is not None and self.constraint.in_force:
            if sampling.greedy and most_likely not in banned and self.constraint.allows(most_likely):
                self.adjusted_logits_v = logits_v
                return most_likely
            if self.constraint.error is not None:
                return None
            logits_v = mask_logits(logits_v, self.constraint.allowed_tokens())
            if logits_v is None:
                return None
            most_likely = int(logits_v.argmax())
        self.adjusted_logits_v = logits_v
        return most_likely if sampling.greedy else sample_token(logits_v, sampling, self.generator)

    @property
    def processed_logits(self) -> Any:
        """The logits (v) of the distribution that the last token was sampled from."""
        sampling = self.params.sampling
        if sampling.greedy:
            return self.adjusted_logits_v
        return sampling_probabilities(self.adjusted_logits_v, sampling).log()

    def end(self) -> None:
        """Finish a completion that no token may follow."""
        self.error = None if self.constraint is None else self.constraint.explain_end()
        self._finish(FinishReason.stop if self.error is None else FinishReason.failed)

    def append(self, token: int, logprob: TokenLogprob | None) -> None:
        """Append a token, emit the text that it completes, and finish if it is the last."""
        self.output_ids.append(token)
        if token in self.end_ids:
            self._finish(FinishReason.stop, logprob)
            return
        if logprob is not None:
            self.pending_logprobs.append((self.decoded_characters, logprob))
        text = self.detokenizer.push(token)
        if self.constraint is not None:
            self.constraint.advance(token, text)
        self._add_text(text)
        if self.stop_matcher.matched:
            self._finish(FinishReason.stop)
        elif len(self.output_ids) >= self.params.max_tokens:
            self._finish(FinishReason.length)
        elif self.params.stream and self.pending_text:
            self._emit(None)

    def _add_text(self, text: str) -> None:
        self.decoded_characters += len(text)
        # Stop strings do not count before min_tokens.
        early = len(self.output_ids) <= self.params.min_tokens
        visible = text if early else self.stop_matcher.push(text)
        self.visible_characters += len(visible)
        self.pending_text += visible

    def _finish(self, reason: FinishReason, end_logprob: TokenLogprob | None = None) -> None:
        if not self.stop_matcher.matched:
            self._add_text(self.detokenizer.flush())
        if self.stop_matcher.matched:
            reason, end_logprob = FinishReason.stop, None
            self.pending_logprobs = [
                entry for entry in self.pending_logprobs if entry[0] < self.visible_characters
            ]
        else:
            withheld = self.stop_matcher.flush()
            self.visible_characters += len(withheld)
            self.pending_text += withheld
        self.finish_reason = reason
        self._emit(reason, end_logprob)

    def _emit(self, reason: FinishReason | None, end_logprob: TokenLogprob | None = None) -> None:
        ready = [
            logprob
            for position, logprob in self.pending_logprobs
            if reason is not None or position < self.visible_characters
        ]
        self.pending_logprobs = self.pending_logprobs[len(ready) :]
        self.emit(
            OutputChunk(
                self.pending_text,
                ready,
                len(self.output_ids),
                reason,
                self.prompt_logprobs,
                end_logprob,
                self.error,
                () if reason is None else tuple(self.output_ids),
            )
        )
        self.pending_text, self.prompt_logprobs = "", None
