"""Requests that are decoded together answer as if they were alone, and sooner than one after the other."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI

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
    answer = client.chat.completions.create(messages=messages, logprobs=True, **options)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    return answer.choices[0].message.content or "", [token.logprob for token in logprobs.content or []]


def all_at_once(client: OpenAI, requests: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda options: complete(client, **options), requests))


def test_batched_greedy_answers_equal_single_ones(client: OpenAI) -> None:
    # Prompts and answers of many lengths, so that rows join and leave while others go on.
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


def test_a_seeded_draw_does_not_depend_on_its_company(client: OpenAI) -> None:
    mine = {"model": "base", "temperature": 1.5, "seed": 7, "max_tokens": 40, "top_p": 0.95}
    alone = complete(client, **mine)[0]
    company = [{"model": "base", "temperature": 1.5, "seed": seed, "max_tokens": 60} for seed in range(12)]
    assert all_at_once(client, [*company, mine])[-1][0] == alone


def test_sixteen_requests_together_are_clearly_faster_than_in_turn(client: OpenAI) -> None:
    request = {"model": "base", "temperature": 0, "max_tokens": 100, "extra_body": {"ignore_eos": True}}
    complete(client, **request)
    # On a busy machine one of the two may have to wait for others: then both are done again.
    assert any(ratio > 2 for ratio in (gained(client, request) for _ in range(3)))


def gained(client: OpenAI, request: dict[str, Any]) -> float:
    """How many times as long sixteen requests take in turn as together."""
    begun = time.perf_counter()
    for _ in range(16):
        complete(client, **request)
    in_turn = time.perf_counter() - begun
    begun = time.perf_counter()
    all_at_once(client, [request] * 16)
    together = time.perf_counter() - begun
    print(f"16 in turn {in_turn:.2f} s, together {together:.2f} s, ratio {in_turn / together:.1f}")
    return in_turn / together
