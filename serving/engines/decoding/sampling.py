"""Sampling of the next token of a sequence, and its log-probabilities.

Tensor suffixes: t tokens, v vocabulary.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import torch

# OpenAI's replacement for minus infinity, which JSON cannot represent.
MIN_LOGPROB = -9999.0
GREEDY_BELOW = 1e-5
# Positions of a prompt whose probabilities are in memory at once, in fp32.
SCORED_POSITIONS = 256


class LogprobsMode(StrEnum):
    """The logits of which log-probabilities are reported, by vLLM's names."""

    raw = "raw_logprobs"  # As the model returns them.
    processed = "processed_logprobs"  # As tokens are sampled: with temperature, penalties and filters.


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of a request, in vLLM's terms; the defaults sample from all tokens.

    `logprobs` is the number of most likely tokens to report with each token, or None for no
    log-probabilities.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def adjusts_logits(self) -> bool:
        """Whether biases or penalties change the logits."""
        penalized = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalized or self.logit_bias)


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability, and the most likely tokens at its position in descending order."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def make_generator(seed: int) -> Any:
    """Create a request's random generator, on the CPU so that all devices sample alike."""
    return torch.Generator().manual_seed(seed)


def adjust_logits(
    logits_v: Any,
    params: SamplingParams,
    prompt_ids: list[int],
    output_ids: list[int],
    banned: frozenset[int],
) -> Any:
    """Apply biases, bans and penalties in vLLM's order.

    The repetition penalty counts the prompt as well, and divides positive and multiplies negative logits.
    Presence and frequency penalties count the completion alone.
    """
    logits_v = logits_v.float().clone()
    for token, bias in params.logit_bias.items():
        logits_v[token] += bias
    if banned:
        logits_v[list(banned)] = -torch.inf
    if params.repetition_penalty != 1:
        seen = list({*prompt_ids, *output_ids})
        values = logits_v[seen]
        penalty = params.repetition_penalty
        logits_v[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if output_ids and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(output_ids)
        times = torch.tensor(list(counts.values()), dtype=torch.float32, device=logits_v.device)
        logits_v[list(counts)] -= params.presence_penalty + params.frequency_penalty * times
    return logits_v


def mask_logits(logits_v: Any, allowed: bytes) -> Any | None:
    """Return the logits with minus infinity for each token whose bit in `allowed` is 0; None if all are.

    The lowest bit of a byte comes first. Biases and penalties of earlier steps stay as they are.
    """
    bits_v = np.unpackbits(np.frombuffer(allowed, dtype=np.uint8), count=len(logits_v), bitorder="little")
    allowed_v = torch.from_numpy(bits_v).to(logits_v.device).bool()
    masked_v = logits_v.masked_fill(~allowed_v, -torch.inf)
    return masked_v if bool(torch.isfinite(masked_v).any()) else None


def sampling_probabilities(logits_v: Any, params: SamplingParams) -> Any:
    """Return the probabilities of the next token with temperature and filters, not normalized."""
    scores_v = logits_v.float() / params.temperature
    if 0 < params.top_k < len(scores_v):
        lowest = scores_v.topk(params.top_k).values[-1]
        scores_v = scores_v.masked_fill(scores_v < lowest, -torch.inf)
    probabilities_v = scores_v.softmax(dim=-1)
    if params.min_p > 0:
        probabilities_v = probabilities_v.masked_fill(
            probabilities_v < params.min_p * probabilities_v.max(), 0.0
        )
    if params.top_p < 1:
        probabilities_v = filter_top_p(probabilities_v / probabilities_v.sum(), params.top_p)
    return probabilities_v


def sample_token(logits_v: Any, params: SamplingParams, generator: Any) -> int:
    """Sample one token by inverting the cumulative distribution, in float64 so that it sums to one."""
    cumulative_v = sampling_probabilities(logits_v, params).cpu().double().cumsum(dim=-1)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative_v[-1]
    token = torch.searchsorted(cumulative_v, point, right=True)
    return min(int(token), len(cumulative_v) - 1)


def filter_top_p(probabilities_v: Any, top_p: float) -> Any:
    """Zero all but the most likely tokens, up to and including the one that reaches `top_p`."""
    sorted_v, order_v = probabilities_v.sort(descending=True)
    beyond_v = sorted_v.cumsum(dim=-1) - sorted_v >= top_p
    beyond_v[0] = False
    return probabilities_v.masked_fill(torch.zeros_like(beyond_v).scatter(0, order_v, beyond_v), 0.0)


def token_logprob(logits_v: Any, token: int, n_top: int) -> TokenLogprob:
    """Compute a token's log-probability from logits."""
    logprobs_v = logits_v.float().log_softmax(dim=-1)
    best = logprobs_v.topk(min(n_top, len(logprobs_v)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    top = tuple((index, max(value, MIN_LOGPROB)) for index, value in pairs)
    return TokenLogprob(token, max(float(logprobs_v[token]), MIN_LOGPROB), top)


def prompt_logprobs(logits_tv: Any, prompt_ids: list[int], n_top: int) -> list[TokenLogprob]:
    """Compute the log-probability of each prompt token but the first, given the tokens before it."""
    scored: list[TokenLogprob] = []
    for start in range(0, len(prompt_ids) - 1, SCORED_POSITIONS):
        tokens = prompt_ids[start + 1 : start + 1 + SCORED_POSITIONS]
        logprobs_tv = logits_tv[start : start + len(tokens)].float().log_softmax(dim=-1)
        tokens_t1 = torch.tensor(tokens, device=logprobs_tv.device)[:, None]
        chosen_t = logprobs_tv.gather(-1, tokens_t1)[:, 0].clamp(min=MIN_LOGPROB).tolist()
        best = logprobs_tv.topk(min(n_top, logprobs_tv.shape[-1]))
        tops = zip(best.indices.tolist(), best.values.clamp(min=MIN_LOGPROB).tolist(), strict=True)
        scored += [
            TokenLogprob(token, value, tuple(zip(*top, strict=True)))
            for token, value, top in zip(tokens, chosen_t, tops, strict=True)
        ]
    return scored
