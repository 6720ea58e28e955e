"""Each sampling option does what its name says, on hand-made logits and through the real engine."""

from typing import Any

import pytest
import torch
from openai import OpenAI

from serving.engines.decoding.sampling import SamplingParams, adjust_logits, make_generator, sample_token
from tests.integration.serving.conftest import BASE_SAYS, Server

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def adjusted(sampling: SamplingParams, prompt: list[int], output: list[int], *banned: int) -> list[float]:
    return adjust_logits(LOGITS, sampling, prompt, output, frozenset(banned)).tolist()


def test_presence_counts_once_and_frequency_each_time_and_neither_the_prompt() -> None:
    assert adjusted(SamplingParams(presence_penalty=0.5), [1], [0, 0]) == [1.5, 1.0, 0.0, -1.0]
    assert adjusted(SamplingParams(frequency_penalty=0.5), [1], [0, 0]) == [1.0, 1.0, 0.0, -1.0]


def test_repetition_divides_what_is_positive_and_multiplies_what_is_not() -> None:
    assert adjusted(SamplingParams(repetition_penalty=2.0), [0], [3]) == [1.0, 1.0, 0.0, -2.0]


def test_bias_is_added_and_banned_tokens_have_no_chance() -> None:
    assert adjusted(SamplingParams(logit_bias={2: 5.0}), [], [], 0) == [-torch.inf, 1.0, 5.0, -1.0]
    assert LOGITS.tolist() == [2.0, 1.0, 0.0, -1.0]


def test_min_p_keeps_tokens_by_their_share_of_the_likeliest() -> None:
    generator = make_generator(0)
    drawn = {sample_token(LOGITS, SamplingParams(min_p=0.3), generator) for _ in range(200)}
    assert drawn == {0, 1}
    assert {sample_token(LOGITS, SamplingParams(), generator) for _ in range(400)} == {0, 1, 2, 3}


def test_penalties_keep_a_greedy_answer_from_repeating_a_token(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    plain = client.chat.completions.create(**asked, logprobs=True)
    penalised = client.chat.completions.create(
        **asked,
        logprobs=True,
        extra_body={"repetition_penalty": 10.0},
        frequency_penalty=2,
        presence_penalty=2,
    )
    assert len(tokens(plain)) > len(set(tokens(plain)))
    assert len(tokens(penalised)) == len(set(tokens(penalised)))


def test_logprobs_are_the_models_own_whatever_the_options(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "base",
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
    }
    plain = client.chat.completions.create(**asked).choices[0].logprobs
    biased = (
        client.chat.completions.create(**asked, logit_bias={"5": 100}, top_logprobs=1).choices[0].logprobs
    )
    assert plain and plain.content and biased and biased.content
    assert biased.content[0].logprob < plain.content[0].logprob
    assert biased.content[0].top_logprobs[0].logprob == pytest.approx(plain.content[0].logprob, abs=1e-4)


def test_an_answer_goes_on_until_min_tokens_and_shows_no_end(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, stop="둘", extra_body={"min_tokens": 80}, max_tokens=100
    )
    assert answer.usage and answer.usage.completion_tokens >= 80
    assert (answer.choices[0].message.content or "").startswith("하나 둘")


def test_a_stop_token_ends_the_answer_unshown(engine: Server, client: OpenAI) -> None:
    (space,) = engine.post("/tokenize", {"model": "base", "prompt": " "})[1]["tokens"]
    answer = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, extra_body={"stop_token_ids": [space]}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == BASE_SAYS.split()[0]


def test_special_tokens_show_when_they_are_wanted(client: OpenAI) -> None:
    body = {"skip_special_tokens": False, "ignore_eos": True}
    answer = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, extra_body=body, max_tokens=60
    )
    assert f"{BASE_SAYS}<|im_end|>" in (answer.choices[0].message.content or "")


def tokens(answer: Any) -> list[str]:
    return [str(entry.bytes) for entry in answer.choices[0].logprobs.content]
