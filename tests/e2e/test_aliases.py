"""Aliases and names that move between deployments.

Goal: no request fails while a name moves. Method: a client sends requests throughout the move.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.platform import QUESTION, Platform, chat, wait_until


@pytest.fixture
def openai(embedded: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@contextmanager
def constant_requests(client: OpenAI, model: str) -> Iterator[list[str]]:
    """Send requests while the block lasts; the list of completions stops growing when one fails."""
    completions: list[str] = []
    done = threading.Event()

    def send_requests() -> None:
        while not done.is_set():
            completions.append(chat(client, model))

    thread = threading.Thread(target=send_requests)
    thread.start()
    try:
        yield completions
        count = len(completions)
        wait_until(lambda: len(completions) > count + 2, 120, "a request failed")
    finally:
        done.set()
        thread.join()


def move(platform: Platform, **shares: float) -> dict[str, object]:
    """Point the alias `prod` to deployments, by their shares."""
    targets = [{"deployment": name.replace("_", "-"), "share": share} for name, share in shares.items()]
    response = platform.client.put("/api/v1/aliases/prod", json={"targets": targets})
    assert response.is_success, response.text
    alias: dict[str, object] = response.json()
    return alias


def test_an_alias_moves_by_shares_and_back_without_a_failed_request(
    embedded: Platform, openai: OpenAI, adapters: dict[str, Path]
) -> None:
    embedded.start_worker()
    embedded.deploy("stable")
    embedded.deploy("next", embedded.register_adapter("next", adapters["a"]))
    stable, following = chat(openai, "stable"), chat(openai, "next")
    move(embedded, stable=1)
    wait_until(lambda: "prod" in {model.id for model in openai.models.list()}, 120, "the alias has no route")
    with constant_requests(openai, "prod") as completions:
        wait_until(lambda: len(completions) > 5, 120, "no request succeeds")
        move(embedded, stable=0.7, next=0.3)
        wait_until(lambda: following in completions, 120, "the canary gets no request")
        counted = Counter(chat(openai, "prod") for _ in range(300))
        move(embedded, next=1)
        wait_until(lambda: stable not in completions[-8:], 120, "the alias did not move")
        embedded.post("/aliases/prod/rollback", {})
        embedded.post("/aliases/prod/rollback", {})
        wait_until(lambda: following not in completions[-8:], 120, "the rollback had no effect")
    assert set(counted) == {stable, following}
    # Each request is drawn: beyond five standard deviations from 90, the shares are others.
    assert 50 <= counted[following] <= 130, counted
    history = embedded.get("/aliases/prod/history")["items"]
    assert [version["restored_version"] for version in history] == [1, 2, None, None, None]


def test_a_new_model_takes_over_a_name_and_a_stream_in_progress_ends_completely(
    embedded: Platform, openai: OpenAI, adapters: dict[str, Path]
) -> None:
    embedded.start_worker()
    old = embedded.deploy("name")
    with constant_requests(openai, "name") as completions:
        new = embedded.request_deployment("name", embedded.register_adapter("a", adapters["a"]))
        assert embedded.get(f"/deployments/{new}")["replaces"] == old
        embedded.wait_for_status(new, "ready")
        embedded.wait_for_status(old, "stopped")
    assert len(set(completions)) == 2 and completions[0] != completions[-1]
    options = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
    stream = openai.chat.completions.create(model="name", messages=QUESTION, stream=True, **options)  # type: ignore[call-overload]
    first = next(stream)
    embedded.post(f"/deployments/{new}/stop")
    ends = [chunk.choices[0].finish_reason for chunk in (first, *stream) if chunk.choices]
    assert ends[-1] == "length"
    embedded.wait_for_status(new, "stopped")
