"""Each sampling parameter has its effect on hand-made logits."""

import math

import pytest
import torch

from serving.engines.decoding.sampling import (
    SamplingParams,
    adjust_logits,
    make_generator,
    sample_token,
    sampling_probabilities,
    token_logprob,
)

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def adjust(sampling: SamplingParams, prompt: list[int], output: list[int], *banned: int) -> list[float]:
    logits: list[float] = adjust_logits(LOGITS, sampling, prompt, output, frozenset(banned)).tolist()
    return logits


def test_presence_counts_once_and_frequency_each_time_and_neither_the_prompt() -> None:
    assert adjust(SamplingParams(presence_penalty=0.5), [1], [0, 0]) == [1.5, 1.0, 0.0, -1.0]
    assert adjust(SamplingParams(frequency_penalty=0.5), [1], [0, 0]) == [1.0, 1.0, 0.0, -1.0]


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    assert adjust(SamplingParams(repetition_penalty=2.0), [0], [3]) == [1.0, 1.0, 0.0, -2.0]


def test_bias_is_added_and_banned_tokens_have_no_probability() -> None:
    assert adjust(SamplingParams(logit_bias={2: 5.0}), [], [], 0) == [-torch.inf, 1.0, 5.0, -1.0]
    assert LOGITS.tolist() == [2.0, 1.0, 0.0, -1.0]


def test_min_p_keeps_tokens_by_their_probability_relative_to_the_most_likely() -> None:
    generator = make_generator(0)
    sampled = {sample_token(LOGITS, SamplingParams(min_p=0.3), generator) for _ in range(200)}
    assert sampled == {0, 1}
    assert {sample_token(LOGITS, SamplingParams(), generator) for _ in range(400)} == {0, 1, 2, 3}


def test_processed_probabilities_are_those_that_a_token_is_sampled_with() -> None:
    logits_v = torch.tensor([2.0, 1.0, 0.0, -4.0])
    params = SamplingParams(temperature=0.5, top_k=2)
    probabilities_v = sampling_probabilities(logits_v, params)
    assert probabilities_v.tolist() == pytest.approx([0.8808, 0.1192, 0, 0], abs=1e-4)
    assert token_logprob(probabilities_v.log(), 1, 0).logprob == pytest.approx(math.log(0.1192), abs=1e-3)
    drawn = [sample_token(logits_v, params, make_generator(seed)) for seed in range(400)]
    assert drawn.count(1) / 400 == pytest.approx(0.1192, abs=0.05)
