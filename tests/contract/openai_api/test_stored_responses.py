"""Stored responses and the conversations that they form, through OpenAI's official client."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError
from openai.types.responses import Response
from sqlalchemy import text, update
from starlette.testclient import TestClient

from app.storage.database import transaction
from app.tables import Scope, StoredResponse
from app.tables.base import utc_now
from tests.contract.openai_api.talking_engine import RESPONSE_ID, TalkingEngine

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def ask(openai: Any, text: Any, **options: Any) -> Any:
    values = {"model": "talk", "input": text} | options
    return openai.responses.create(**values)


def texts(openai: Any, response_id: str, **query: Any) -> list[str]:
    return [item.content[0].text for item in openai.responses.input_items.list(response_id, **query)]


def test_a_response_is_stored_and_can_be_retrieved(openai: Any, engine: TalkingEngine) -> None:
    created = ask(openai, "하나", metadata={"a": "1"})
    assert (created.store, created.id != RESPONSE_ID, created.id[:5]) == (True, True, "resp_")
    stored = openai.responses.retrieve(created.id, include=["message.output_text.logprobs"])
    assert Response.model_validate(stored.model_dump()).output == created.output
    assert (stored.output_text, stored.metadata, stored.store) == ("하나", {"a": "1"}, True)
    (item,) = openai.responses.input_items.list(created.id)
    assert (item.type, item.role, item.content[0].text, item.id[:4]) == ("message", "user", "하나", "msg_")
    assert engine.bodies[-1]["store"] is False


def test_a_conversation_continues_without_its_instructions(openai: Any, engine: TalkingEngine) -> None:
    first = ask(openai, "one", instructions="Be brief.")
    last = ask(openai, [{"role": "user", "content": "two"}], previous_response_id=first.id)
    assert (last.previous_response_id, last.output_text) == (first.id, "two")
    sent = engine.bodies[-1]
    assert "instructions" not in sent
    assert "previous_response_id" not in sent
    assert [(item["role"], item["content"]) for item in sent["input"]][2] == ("user", "two")
    third = ask(openai, "three", previous_response_id=last.id)
    assert [item["role"] for item in engine.bodies[-1]["input"]] == ["user", "assistant"] * 2 + ["user"]
    assert texts(openai, third.id, order="asc") == ["one", "one", "two", "two", "three"]
    assert texts(openai, third.id, limit=2) == ["three", "two", "two", "one", "one"]


@SQLITE
def test_a_streamed_response_can_be_continued_at_once(openai: Any, engine: TalkingEngine) -> None:
    with openai.responses.stream(model="talk", input="one") as stream:
        first = stream.get_final_response()
    events = list(ask(openai, "two", previous_response_id=first.id, stream=True))
    created, completed = events[0].response, events[-1].response
    assert created.id == completed.id != RESPONSE_ID
    assert (completed.store, completed.previous_response_id) == (True, first.id)
    assert openai.responses.retrieve(completed.id).output_text == "two"


@SQLITE
def test_a_deployment_without_store_days_stores_nothing_and_continues_nothing(
    openai: Any, engine: TalkingEngine, set_store_days: Callable[[float], None]
) -> None:
    first = ask(openai, "one")
    unstored = ask(openai, "two", previous_response_id=first.id, store=False)
    assert (unstored.store, unstored.previous_response_id, unstored.id) == (False, first.id, RESPONSE_ID)
    set_store_days(0)
    assert ask(openai, "three").id == RESPONSE_ID
    with pytest.raises(BadRequestError, match="store_days") as caught:
        ask(openai, "three", previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"
    assert openai.responses.retrieve(first.id).output_text == "one"


def test_a_deleted_foreign_or_expired_response_cannot_be_continued(
    openai: Any, engine: TalkingEngine, key_of: Callable[..., Any]
) -> None:
    admin, own = key_of(Scope.admin), key_of(Scope.inference)
    first = ask(own, "one")
    second = ask(own, "two", previous_response_id=first.id)
    for stranger, response_id in ((admin, second.id), (own, "resp_none"), (own, "resp_\0")):
        with pytest.raises(BadRequestError) as caught:
            ask(stranger, "three", previous_response_id=response_id)
        assert caught.value.code == "previous_response_not_found"
    assert admin.responses.retrieve(second.id).output_text == "two"
    own.responses.delete(first.id)
    with pytest.raises(NotFoundError) as missing:
        own.responses.retrieve(first.id)
    assert missing.value.code == "stored_response_not_found"
    with pytest.raises(BadRequestError, match="was deleted"):
        ask(own, "three", previous_response_id=second.id)
    with pytest.raises(NotFoundError, match="was deleted"):
        own.responses.input_items.list(second.id)
    with transaction() as session:
        session.execute(update(StoredResponse).values(expires_at=utc_now() - timedelta(seconds=1)))
    with pytest.raises(BadRequestError, match="not found"):
        ask(own, "three", previous_response_id=second.id)


@SQLITE
def test_a_conversation_beyond_the_size_of_a_request_is_refused(openai: Any, engine: TalkingEngine) -> None:
    first = ask(openai, "one")
    with transaction() as session:
        session.execute(update(StoredResponse).values(size_bytes=9 * 2**20))
    with pytest.raises(BadRequestError) as caught:
        ask(openai, "two", previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "previous_response_id")


@SQLITE
def test_a_stored_response_is_replayed_as_a_stream(openai: Any, engine: TalkingEngine) -> None:
    response_id = ask(openai, "one").id
    events = list(openai.responses.retrieve(response_id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events][2:6] == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
    ]
    assert (events[4].delta, events[0].response.status, events[0].response.output) == (
        "one",
        "in_progress",
        [],
    )
    assert events[-1].response == openai.responses.retrieve(response_id)
    later = openai.responses.retrieve(response_id, stream=True, starting_after=4)
    assert list(later) == events[5:]
    with pytest.raises(BadRequestError) as caught:
        openai.responses.retrieve(response_id, extra_query={"starting_after": 4})
    assert caught.value.param == "starting_after"


@SQLITE
def test_a_field_that_is_not_offered_is_refused_by_name(openai: Any, engine: TalkingEngine) -> None:
    for fields in ({"background": True}, {"conversation": "conv_1"}):
        with pytest.raises(BadRequestError, match="not offered") as caught:
            ask(openai, "one", **fields)
        assert caught.value.param in fields


@SQLITE
def test_methods_that_are_not_offered_say_so(openai: Any, engine: TalkingEngine) -> None:
    response_id = ask(openai, "one").id
    calls: list[Callable[[], object]] = [
        lambda: openai.responses.cancel(response_id),
        lambda: openai.responses.compact(model="talk"),
        lambda: openai.responses.input_tokens.count(model="talk", input="x"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match="not offered") as caught:
            call()
        assert caught.value.code == "not_offered"


def test_an_answer_that_cannot_be_stored_is_delivered_and_reports_it(
    openai: Any, engine: TalkingEngine, client: TestClient
) -> None:
    with transaction() as session:
        session.execute(text("ALTER TABLE stored_response RENAME TO away"))
    try:
        plain = ask(openai, "one")
        events = list(ask(openai, "one", stream=True))
        lost = client.get("/metrics").text
    finally:
        with transaction() as session:
            session.execute(text("ALTER TABLE away RENAME TO stored_response"))
    assert {event.response.id for event in (events[0], events[-1])} == {events[0].response.id}
    assert (plain.store, events[-1].response.store) == (False, False)
    assert (plain.output_text, events[-1].response.output_text) == ("one", "one")
    assert 'tunesmith_gateway_answers_lost_total{reason="database"}' in lost
    assert ask(openai, "two").store is True


@SQLITE
def test_an_answer_beyond_the_limit_is_not_stored(
    openai: Any, engine: TalkingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway.stored_answers.proxied_request.MAX_ANSWER_BYTES", 100)
    assert ask(openai, "one").store is False
    chunks = openai.chat.completions.create(
        model="talk", messages=[{"role": "user", "content": "one two"}], store=True, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two"
    assert openai.chat.completions.list().data == []
