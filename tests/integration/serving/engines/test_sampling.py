"""Each sampling parameter has its effect through the real engine."""

from typing import Any

import pytest
from openai import OpenAI

from tests.integration.serving.conftest import BASE_SAYS, Server

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


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
