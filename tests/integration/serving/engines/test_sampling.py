"""Each sampling parameter has its effect, on hand-made logits and through the real engine."""

from typing import Any

import pytest
import torch
from openai import OpenAI

from serving.engines.decoding.sampling import SamplingParams, adjust_logits, make_generator, sample_token
from tests.integration.serving.conftest import BASE_SAYS, Server

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def adjust(sampling: SamplingParams, prompt: list[int], output: list[int], *banned: int) -> list[float]:
    return adjust_logits(LOGITS, sampling, prompt, output, frozenset(banned)).tolist()


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


def test_penalties_prevent_a_greedy_completion_from_repeating_a_token(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    plain = client.chat.completions.create(**request, logprobs=True)
    penalised = client.chat.completions.create(
        **request,
        logprobs=True,
        extra_body={"repetition_penalty": 10.0},
        frequency_penalty=2,
        presence_penalty=2,
    )
    assert len(tokens(plain)) > len(set(tokens(plain)))
    assert len(tokens(penalised)) == len(set(tokens(penalised)))


def test_logprobs_are_the_model_s_own_with_any_parameters(client: OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "base",
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
    }
    plain = client.chat.completions.create(**request).choices[0].logprobs
    biased = (
        client.chat.completions.create(**request, logit_bias={"5": 100}, top_logprobs=1).choices[0].logprobs
    )
    assert plain and plain.content and biased and biased.content
    assert biased.content[0].logprob < plain.content[0].logprob
    assert biased.content[0].top_logprobs[0].logprob == pytest.approx(plain.content[0].logprob, abs=1e-4)


def test_a_completion_continues_until_min_tokens_without_its_end_token(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, stop="둘", extra_body={"min_tokens": 80}, max_tokens=100
    )
    assert completion.usage and completion.usage.completion_tokens >= 80
    assert (completion.choices[0].message.content or "").startswith("하나 둘")


def test_a_stop_token_ends_the_completion_without_text(engine: Server, client: OpenAI) -> None:
    (space,) = engine.post("/tokenize", {"model": "base", "prompt": " "})[1]["tokens"]
    completion = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, extra_body={"stop_token_ids": [space]}
    )
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.content == BASE_SAYS.split()[0]


def test_special_tokens_are_included_on_request(client: OpenAI) -> None:
    body = {"skip_special_tokens": False, "ignore_eos": True}
    completion = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, extra_body=body, max_tokens=60
    )
    assert f"{BASE_SAYS}<|im_end|>" in (completion.choices[0].message.content or "")


def tokens(completion: Any) -> list[str]:
    return [str(entry.bytes) for entry in completion.choices[0].logprobs.content]
