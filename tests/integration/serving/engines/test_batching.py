"""Requests that are decoded together equal single ones, and are faster than one after the other."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

QUESTIONS = [
    "hello",
    "count",
    "안녕하세요, 누구세요?",
    "1 2 3",
    "x",
    "what is this? " * 5,
    "translate it",
    "둘",
]


def complete(client: OpenAI, **options: Any) -> tuple[str, list[float]]:
    messages: list[Any] = [{"role": "user", "content": options.pop("question", "hello")}]
    response = client.chat.completions.create(messages=messages, logprobs=True, **options)
    logprobs = response.choices[0].logprobs
    assert logprobs is not None
    return response.choices[0].message.content or "", [token.logprob for token in logprobs.content or []]


def all_at_once(client: OpenAI, requests: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda options: complete(client, **options), requests))


def test_batched_greedy_completions_equal_single_ones(client: OpenAI) -> None:
    # Prompts and completions of many lengths, so that sequences join and leave while others continue.
    requests = [
        {"model": model, "question": question, "temperature": 0, "max_tokens": 10 + 9 * place}
        for place, question in enumerate(QUESTIONS)
        for model in ("base", "alpha", "beta")
    ]
    single = [complete(client, **options) for options in requests]
    together = all_at_once(client, requests)
    assert [text for text, _ in together] == [text for text, _ in single]
    pairs = zip(single, together, strict=True)
    drift = [abs(a - b) for one, other in pairs for a, b in zip(one[1], other[1], strict=True)]
    assert max(drift) < 1e-3


def test_prompts_that_are_scored_together_have_the_scores_of_single_ones(client: OpenAI) -> None:
    def score(prompts: list[str]) -> list[list[float | None]]:
        options: dict[str, Any] = {"model": "alpha", "max_tokens": 0, "echo": True, "logprobs": 2}
        choices = client.completions.create(prompt=prompts, **options).choices
        return [choice.logprobs.token_logprobs or [] for choice in choices if choice.logprobs is not None]

    together, single = score(QUESTIONS), [score([question])[0] for question in QUESTIONS]
    assert [len(scores) for scores in together] == [len(scores) for scores in single]
    pairs = [
        (a, b) for one, other in zip(together, single, strict=True) for a, b in zip(one, other, strict=True)
    ]
    assert max(abs(a - b) for a, b in pairs if a is not None and b is not None) < 1e-4


def test_token_ids_are_returned_with_one_log_probability_each(client: OpenAI) -> None:
    ids, asked = [9, 8, 7], {"return_token_ids": True}
    response = client.completions.create(
        model="alpha", prompt=ids, n=2, seed=5, max_tokens=6, temperature=1, logprobs=0, extra_body=asked
    )
    for choice in response.choices:
        assert choice.model_extra is not None and choice.logprobs is not None
        assert choice.model_extra["prompt_token_ids"] == ids
        assert 0 < len(choice.model_extra["token_ids"]) == len(choice.logprobs.token_logprobs or []) <= 6
    with pytest.raises(BadRequestError, match="'return_token_ids' needs 'stream': false"):
        client.completions.create(model="alpha", prompt=ids, stream=True, extra_body=asked)


def test_a_seeded_completion_does_not_depend_on_its_batch(client: OpenAI) -> None:
    request = {"model": "base", "temperature": 1.5, "seed": 7, "max_tokens": 40, "top_p": 0.95}
    alone = complete(client, **request)[0]
    others = [{"model": "base", "temperature": 1.5, "seed": seed, "max_tokens": 60} for seed in range(12)]
    assert all_at_once(client, [*others, request])[-1][0] == alone


def test_sixteen_parallel_requests_are_faster_than_sequential_ones(client: OpenAI) -> None:
    request = {"model": "base", "temperature": 0, "max_tokens": 100, "extra_body": {"ignore_eos": True}}
    complete(client, **request)
    # On a busy machine one of the two may be delayed: then both are repeated.
    assert any(ratio > 2 for ratio in (measure_speedup(client, request) for _ in range(3)))


def measure_speedup(client: OpenAI, request: dict[str, Any]) -> float:
    """Return the time of sixteen sequential requests, divided by that of parallel ones."""
    start = time.perf_counter()
    for _ in range(16):
        complete(client, **request)
    in_turn = time.perf_counter() - start
    start = time.perf_counter()
    all_at_once(client, [request] * 16)
    together = time.perf_counter() - start
    print(f"16 in turn {in_turn:.2f} s, together {together:.2f} s, ratio {in_turn / together:.1f}")
    return in_turn / together
