"""Names change hands under load, and nobody who asks notices."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.platform import QUESTION, Platform, ask, until


@pytest.fixture
def openai(embedded: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@contextmanager
def asking(client: OpenAI, model: str) -> Iterator[list[str]]:
    """Asks again and again while the block lasts; the list grows until a request fails."""
    answers: list[str] = []
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            answers.append(ask(client, model))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield answers
        count = len(answers)
        until(lambda: len(answers) > count + 2, 120, "a request has failed")
    finally:
        done.set()
        thread.join()


def move(platform: Platform, **shares: float) -> dict[str, object]:
    """Lead the alias `prod` to deployments by their shares."""
    targets = [{"deployment": name.replace("_", "-"), "share": share} for name, share in shares.items()]
    answer = platform.client.put("/api/v1/aliases/prod", json={"targets": targets})
    assert answer.is_success, answer.text
    moved: dict[str, object] = answer.json()
    return moved


def test_an_alias_moves_by_shares_and_back_without_a_failed_request(
    embedded: Platform, openai: OpenAI, adapters: dict[str, Path]
) -> None:
    embedded.start_worker()
    embedded.deploy("stable")
    embedded.deploy("next", embedded.register("next", adapters["a"]))
    stable, following = ask(openai, "stable"), ask(openai, "next")
    move(embedded, stable=1)
    until(lambda: "prod" in {model.id for model in openai.models.list()}, 120, "the alias does not come up")
    with asking(openai, "prod") as answers:
        until(lambda: len(answers) > 5, 120, "nobody answers")
        move(embedded, stable=0.7, next=0.3)
        until(lambda: following in answers, 120, "the canary gets nothing")
        counted = Counter(ask(openai, "prod") for _ in range(300))
        move(embedded, next=1)
        until(lambda: stable not in answers[-8:], 120, "it does not move")
        embedded.post("/aliases/prod/rollback", {})
        embedded.post("/aliases/prod/rollback", {})
        until(lambda: following not in answers[-8:], 120, "it does not go back")
    assert set(counted) == {stable, following}
    assert 60 <= counted[following] <= 120, counted
    history = embedded.get("/aliases/prod/history")["items"]
    assert [version["restored_version"] for version in history] == [1, 2, None, None, None]


def test_a_new_model_takes_a_name_over_and_an_answer_under_way_ends_whole(
    embedded: Platform, openai: OpenAI, adapters: dict[str, Path]
) -> None:
    embedded.start_worker()
    old = embedded.deploy("name")
    with asking(openai, "name") as answers:
        new = embedded.ask_for("name", embedded.register("a", adapters["a"]))
        assert embedded.get(f"/deployments/{new}")["replaces"] == old
        embedded.await_status(new, "ready")
        embedded.await_status(old, "stopped")
    assert len(set(answers)) == 2 and answers[0] != answers[-1]
    options = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
    stream = openai.chat.completions.create(model="name", messages=QUESTION, stream=True, **options)  # type: ignore[call-overload]
    first = next(stream)
    embedded.post(f"/deployments/{new}/stop")
    ends = [chunk.choices[0].finish_reason for chunk in (first, *stream) if chunk.choices]
    assert ends[-1] == "length"
    embedded.await_status(new, "stopped")
