"""Stored chat completions, through OpenAI's official client."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, PermissionDeniedError
from sqlalchemy import update
from starlette.testclient import TestClient

from app.storage.database import transaction
from app.tables import Scope, StoredCompletion
from app.tables.base import utc_now
from tests.contract.openai_api.talking_engine import CHAT_ID, TalkingEngine

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "하나 둘"}]


def ask(openai: Any, **options: Any) -> Any:
    values = {"model": "talk", "messages": MESSAGES, "store": True} | options
    return openai.chat.completions.create(**values)


@SQLITE
def test_a_completion_is_stored_on_request_with_its_messages_and_metadata(
    openai: Any, engine: TalkingEngine
) -> None:
    created = ask(openai, metadata={"team": "maths"}, temperature=0.5)
    assert (created.id[:9], created.id != CHAT_ID) == ("chatcmpl-", True)
    stored = openai.chat.completions.retrieve(created.id)
    assert (stored.choices, stored.usage, stored.model) == (created.choices, created.usage, "talk")
    assert (stored.metadata, stored.temperature) == ({"team": "maths"}, 0.5)
    messages = openai.chat.completions.messages.list(created.id).data
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Be brief."),
        ("user", "하나 둘"),
    ]
    assert engine.bodies[-1].keys() == {"model", "messages", "metadata", "temperature"}


@SQLITE
def test_a_streamed_completion_is_stored_as_its_chunks_add_up(openai: Any, engine: TalkingEngine) -> None:
    chunks = list(ask(openai, stream=True))
    (answer_id,) = {chunk.id for chunk in chunks}
    stored = openai.chat.completions.retrieve(answer_id)
    message = stored.choices[0].message
    assert (message.content, stored.choices[0].finish_reason) == ("하나 둘", "stop")
    (call,) = message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "add", '{"a":1}')
    assert stored.usage.total_tokens == 8
    assert not any(chunk.usage for chunk in chunks)


@SQLITE
def test_a_stream_that_breaks_is_not_stored(openai: Any, engine: TalkingEngine) -> None:
    with pytest.raises(Exception, match="connection"):
        list(ask(openai, model="cut-talk", stream=True))
    assert openai.chat.completions.list().data == []


@SQLITE
def test_nothing_is_stored_without_store_or_without_store_days(
    openai: Any, engine: TalkingEngine, set_store_days: Callable[[float], None]
) -> None:
    assert ask(openai, store=False).id == CHAT_ID
    set_store_days(0)
    assert ask(openai).id == CHAT_ID
    assert openai.chat.completions.list().data == []
    with pytest.raises(NotFoundError, match="store_days") as caught:
        openai.chat.completions.retrieve(CHAT_ID)
    assert caught.value.code == "stored_completion_not_found"


def test_a_list_is_paged_and_filtered_by_model_and_metadata(openai: Any, engine: TalkingEngine) -> None:
    teams = ("a", 'b"$.', "a")
    ids = [ask(openai, metadata={'te"am': team}).id for team in teams]
    page = openai.chat.completions.list(limit=2)
    assert ([item.id for item in page.data], page.has_more) == (ids[:2], True)
    assert [item.id for item in page] == ids
    assert [item.id for item in openai.chat.completions.list(limit=1, order="desc")] == ids[::-1]
    found = openai.chat.completions.list(metadata={'te"am': 'b"$.'}, model="talk")
    assert [item.id for item in found] == ids[1:2]
    assert openai.chat.completions.list(model="other").data == []
    assert openai.chat.completions.list(metadata={"none": "a"}).data == []


def test_metadata_are_replaced_and_a_deleted_completion_is_gone(openai: Any, engine: TalkingEngine) -> None:
    answer_id = ask(openai, metadata={"a": "1"}).id
    assert openai.chat.completions.update(answer_id, metadata={"b": "2"}).metadata == {"b": "2"}
    assert openai.chat.completions.retrieve(answer_id).metadata == {"b": "2"}
    deleted = openai.chat.completions.delete(answer_id)
    assert (deleted.id, deleted.deleted, deleted.object) == (answer_id, True, "chat.completion.deleted")
    with pytest.raises(NotFoundError):
        openai.chat.completions.messages.list(answer_id)


def test_a_key_sees_its_own_completions_and_an_admin_all(
    openai: Any, engine: TalkingEngine, key_of: Callable[..., Any]
) -> None:
    admin = key_of(Scope.admin)
    one, other, reader = key_of(Scope.inference), key_of(Scope.inference), key_of(Scope.read)
    answer_id = ask(one).id
    assert one.chat.completions.retrieve(answer_id).id == answer_id
    assert [item.id for item in admin.chat.completions.list()] == [answer_id]
    assert other.chat.completions.list().data == []
    for call in (other.chat.completions.retrieve, other.chat.completions.delete):
        with pytest.raises(NotFoundError):
            call(answer_id)
    with pytest.raises(PermissionDeniedError):
        reader.chat.completions.list()


def test_an_expired_completion_is_gone_at_once(openai: Any, engine: TalkingEngine) -> None:
    answer_id = ask(openai).id
    with transaction() as session:
        session.execute(update(StoredCompletion).values(expires_at=utc_now() - timedelta(seconds=1)))
    assert openai.chat.completions.list().data == []
    with pytest.raises(NotFoundError):
        openai.chat.completions.update(answer_id, metadata={})


@SQLITE
def test_a_request_that_cannot_be_read_again_does_not_break_the_list(
    openai: Any, client: TestClient, engine: TalkingEngine
) -> None:
    answer_id = ask(openai).id
    messages = b'[{"role": "user", "content": "x"}]'
    body = b'{"model": "talk", "store": true, "tools": [1e999], "messages": ' + messages + b"}"
    headers = {"content-type": "application/json"}
    assert client.post("/v1/chat/completions", content=body, headers=headers).status_code == 200
    assert [item.id for item in openai.chat.completions.list()] == [answer_id]


@SQLITE
@pytest.mark.parametrize("field", ["store", "metadata"])
def test_a_number_that_is_out_of_range_is_refused_with_its_field(
    client: TestClient, engine: TalkingEngine, field: str
) -> None:
    body = f'{{"model": "talk", "messages": [], "store": true, "{field}": 1e999}}'.encode()
    headers = {"content-type": "application/json"}
    refused = client.post("/v1/chat/completions", content=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


@SQLITE
def test_metadata_beyond_openais_limits_are_refused(openai: Any, engine: TalkingEngine) -> None:
    invalid: list[Any] = [{"a": "x" * 513}, {"a" * 65: "x"}, {str(n): "" for n in range(17)}, {"a": 1}]
    for metadata in [*invalid, {"a": "\0"}, ["a"]]:
        with pytest.raises(BadRequestError) as caught:
            ask(openai, metadata=metadata)
        assert caught.value.param == "metadata"
