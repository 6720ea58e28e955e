"""The chat: its page, and the route by which a login reaches the gateway."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta

import httpx2
import pytest
from sqlmodel import select

from app.storage.database import read_session, transaction
from app.tables import DeploymentStatus, Model, Scope, StoredCompletion
from app.tables.base import utc_now
from tests.integration.app.web import seeded_models
from tests.integration.app.web.conftest import Browser
from tests.integration.app.web.seeded_serving import add_deployment
from tests.integration.serving.fake_engine import FakeEngine
from trainers.configs import EngineTask


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.close()


def make_stored(completion_id: str, deployment_id: str) -> StoredCompletion:
    return StoredCompletion(
        id=completion_id,
        key_id="",
        model="tuned",
        deployment_id=deployment_id,
        client_metadata={"topic": "news"},
        request="{}",
        completion="{}",
        expires_at=utc_now() + timedelta(days=1),
    )


def chat(browser: Browser, model: str, csrf: str | None = None, **fields: object) -> httpx2.Response:
    messages = [{"role": "user", "content": "hello"}]
    headers = {"X-CSRF-Token": browser.csrf("/chat") if csrf is None else csrf, "Accept": "*/*"}
    body = {"model": model, "messages": messages, **fields}
    return browser.client.post("/chat/completions", json=body, headers=headers)


def test_a_service_without_deployments_says_what_to_do_first(browser: Browser) -> None:
    shown = browser.get("/chat").text
    assert "No model is served yet." in shown and 'href="/jobs"' in shown


def test_the_choice_and_the_sampling_are_in_the_url(browser: Browser) -> None:
    add_deployment("tuned")
    add_deployment("base")
    shown = browser.get("/chat?model=tuned&b=base&system=Be+brief&seed=7&temperature=0.5").text
    assert 'data-a="tuned" data-b="base"' in shown and ">Be brief</textarea>" in shown
    assert 'name="seed" type="number" step="1" inputmode="numeric" value="7"' in shown
    assert browser.get("/chat?seed=x").status_code == 422


def test_a_tuned_model_is_compared_with_its_base_unless_none_is_chosen(browser: Browser) -> None:
    seeded_models.add_many_models(1)
    with read_session() as session:
        model_id = session.exec(select(Model.id)).one()
    add_deployment("other", base="org/other")
    add_deployment("starter")
    add_deployment("tuned", model_id=model_id)
    assert 'data-a="tuned" data-b="starter"' in browser.get("/chat?a=tuned").text
    assert 'data-a="tuned" data-b=""' in browser.get("/chat?a=tuned&b=").text
    assert 'data-a="starter" data-b=""' in browser.get("/chat?a=starter").text


def test_models_that_compute_embeddings_or_belong_to_others_are_not_offered(
    browser: Browser, make_secret: Callable[..., str]
) -> None:
    add_deployment("embedder", task=EngineTask.embed)
    add_deployment("sleeping", status=DeploymentStatus.asleep, address=None)
    shown = browser.get("/chat").text
    assert "<option selected>sleeping" in shown and "embedder" not in shown
    assert "The first message wakes it." in shown
    assert "No model is served under the name “gone” now." in browser.get("/chat?a=gone").text


def test_an_answer_streams_through_the_gateway(browser: Browser, engine: FakeEngine) -> None:
    add_deployment("usage", address=engine.url)
    answer = chat(browser, "usage", stream=True, stream_options={"include_usage": True}, seed=7)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert json.loads(events[0])["choices"][0]["delta"]["content"] == "word "
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 5 and events[-1] == "[DONE]"
    assert engine.bodies[-1]["seed"] == 7
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_the_error_of_an_engine_keeps_its_shape(browser: Browser, engine: FakeEngine) -> None:
    add_deployment("broken", address=engine.url)
    refused = chat(browser, "broken")
    assert refused.status_code >= 500 and "message" in refused.json()["error"]
    unknown = chat(browser, "nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_a_chat_needs_the_form_token_and_the_scope(
    browser: Browser, engine: FakeEngine, make_secret: Callable[..., str]
) -> None:
    add_deployment("plain", address=engine.url)
    assert chat(browser, "plain", csrf="0" * 64).status_code == 403
    reader, chatter = make_secret(Scope.read), make_secret(Scope.read, Scope.inference)
    browser.post("/login", key=reader)
    assert chat(browser, "plain").status_code == 403
    assert "lacks the scope “inference”" in browser.get("/chat").text
    browser.post("/login", key=chatter)
    assert chat(browser, "plain").status_code == 200
    # The cookie does not authenticate the API itself.
    assert browser.client.post("/v1/chat/completions", json={"model": "plain"}).status_code == 401


def test_a_rating_is_kept_with_the_stored_answers(browser: Browser) -> None:
    deployment = add_deployment("tuned")
    with transaction() as session:
        for number in range(2):
            session.add(make_stored(f"chatcmpl-{number}", deployment))
    fields = {"first": "chatcmpl-0", "second": "chatcmpl-1", "rating": "second"}
    assert browser.post("/chat/ratings", page="/chat", **fields).json() == {"stored": 2}
    with transaction() as session:
        kept = session.get_one(StoredCompletion, "chatcmpl-1").client_metadata
    assert kept == {"topic": "news", "rating": "better", "compared_with": "chatcmpl-0"}
    fields |= {"first": "gone", "second": ""}
    assert browser.post("/chat/ratings", page="/chat", **fields).json() == {"stored": 0}
