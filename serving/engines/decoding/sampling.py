"""Choosing the next token of each row, and what the model thought of it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

# OpenAI's stand-in for minus infinity, which JSON cannot carry.
LOWEST_LOGPROB = -9999.0
GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """How a request wants its tokens chosen, in vLLM's terms; the defaults leave every token its chance."""

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
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        counted = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(counted or self.logit_bias)


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log probability, and the likeliest tokens in its place, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def make_generator(seed: int) -> Any:
    """A generator of one request, on the CPU so that every device draws alike."""
    return torch.Generator().manual_seed(seed)


def adjust_logits(
    logits_v: Any,
    sampling: SamplingParams,
    prompt_ids: list[int],
    output_ids: list[int],
    banned: frozenset[int],
) -> Any:
    """Logits with bias, bans and penalties, in vLLM's order.

    Repetition counts the prompt too and divides or multiplies; presence and frequency count the answer alone.
    """
    logits_v = logits_v.float().clone()
    for token, bias in sampling.logit_bias.items():
        logits_v[token] += bias
    if banned:
        logits_v[list(banned)] = -torch.inf
    if sampling.repetition_penalty != 1:
        seen = list({*prompt_ids, *output_ids})
        values = logits_v[seen]
        penalty = sampling.repetition_penalty
        logits_v[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if output_ids and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(output_ids)
        times = torch.tensor(list(counts.values()), dtype=torch.float32, device=logits_v.device)
        logits_v[list(counts)] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits_v


def sample_token(logits_v: Any, sampling: SamplingParams, generator: Any) -> int:
    """One draw by inverting the cumulative distribution, in float64 so that it adds up to one."""
    scores_v = logits_v.float() / sampling.temperature
    if 0 < sampling.top_k < len(scores_v):
        lowest = scores_v.topk(sampling.top_k).values[-1]
        scores_v = scores_v.masked_fill(scores_v < lowest, -torch.inf)
    probabilities_v = scores_v.softmax(dim=-1)
    if sampling.min_p > 0:
        probabilities_v = probabilities_v.masked_fill(
            probabilities_v < sampling.min_p * probabilities_v.max(), 0.0
        )
    if sampling.top_p < 1:
        probabilities_v = nucleus(probabilities_v / probabilities_v.sum(), sampling.top_p)
    cumulative_v = probabilities_v.cpu().double().cumsum(dim=-1)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative_v[-1]
    token = torch.searchsorted(cumulative_v, point, right=True)
    return min(int(token), len(cumulative_v) - 1)


def nucleus(probabilities_v: Any, top_p: float) -> Any:
    """Keep the likeliest tokens up to and with the one that reaches `top_p`."""
    sorted_v, order_v = probabilities_v.sort(descending=True)
    beyond_v = sorted_v.cumsum(dim=-1) - sorted_v >= top_p
    beyond_v[0] = False
    return probabilities_v.masked_fill(torch.zeros_like(beyond_v).scatter(0, order_v, beyond_v), 0.0)


def token_logprob(logits_v: Any, token: int, alternatives: int) -> TokenLogprob:
    """Log probability by the model itself, before temperature, penalties and filters."""
    logprobs_v = logits_v.float().log_softmax(dim=-1)
    best = logprobs_v.topk(min(alternatives, len(logprobs_v)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    top = tuple((index, max(value, LOWEST_LOGPROB)) for index, value in pairs)
    return TokenLogprob(token, max(float(logprobs_v[token]), LOWEST_LOGPROB), top)


def prompt_logprobs(logits_tv: Any, prompt_ids: list[int], alternatives: int) -> list[TokenLogprob]:
    """Log probability of each prompt token but the first, given those before it."""
    return [
        token_logprob(logits_v, token, alternatives)
        for logits_v, token in zip(logits_tv[:-1], prompt_ids[1:], strict=True)
    ]
