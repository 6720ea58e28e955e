"""Conversations: chains of stored responses, each of which names the one before."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import literal, select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.storage.database import database_now, read_session
from app.tables import StoredResponse
from serving.http.errors import ApiError
from serving.http.limits import MAX_BODY_BYTES
from trainers.runtime.error_codes import ErrorCode

MAX_TURNS = 1000

_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class PreviousResponseNotFound(ApiError):
    """The response to continue, or one before it, does not exist for the caller."""

    code = ErrorCode.previous_response_not_found

    def __init__(self, message: str) -> None:
        super().__init__(message, "previous_response_id")


class ConversationTooLong(ApiError):
    """The earlier responses are more or larger than a request may be."""

    code = ErrorCode.context_length_exceeded

    def __init__(self, message: str) -> None:
        super().__init__(message, "previous_response_id")


class _Turn(NamedTuple):
    id: str
    previous_response_id: str | None
    size_bytes: int


def load_conversation(response_id: str, key_id: str) -> list[bytes]:
    """Return the items of a response and of all before it, oldest first, as JSON.

    Raises:
        PreviousResponseNotFound: A response of the chain does not exist, has expired, or has another key.
        ConversationTooLong: The chain exceeds the limits of a request.
    """
    with read_session() as session:
        return list_items(session, response_id, key_id)


def list_items(session: Session, response_id: str, key_id: str) -> list[bytes]:
    """Return the items of a response and of all before it; raises as `load_conversation`."""
    # PostgreSQL accepts no NUL, not even to compare with it.
    turns = _list_turns(session, response_id, key_id) if "\0" not in response_id else []
    if not turns:
        raise PreviousResponseNotFound(f"Previous response with id {response_id!r} not found.")
    if len(turns) >= MAX_TURNS or sum(turn.size_bytes for turn in turns) > MAX_BODY_BYTES:
        raise ConversationTooLong(
            f"The conversation before {response_id!r} has more than {MAX_TURNS} turns or "
            f"{MAX_BODY_BYTES} bytes. Begin a new one."
        )
    if (lost := turns[-1].previous_response_id) is not None:
        raise PreviousResponseNotFound(
            f"The conversation of {response_id!r} is incomplete: {lost!r} was deleted or has expired."
        )
    ids = [turn.id for turn in reversed(turns)]
    statement = select(col(StoredResponse.id), col(StoredResponse.input_items), col(StoredResponse.response))
    rows = {row.id: row for row in session.execute(statement.where(col(StoredResponse.id).in_(ids)))}
    items: list[bytes] = []
    for row in (rows[turn_id] for turn_id in ids if turn_id in rows):
        output = _decode_fields(row.response)["output"]
        items += [bytes(item) for item in (*_decode_items(row.input_items), *_decode_items(output))]
    return items


def _list_turns(session: Session, response_id: str, key_id: str) -> Sequence[Any]:
    """Return the readable responses of a chain without their texts, newest first."""
    columns = (
        col(StoredResponse.id),
        col(StoredResponse.previous_response_id),
        col(StoredResponse.size_bytes),
    )
    start = select(*columns, literal(0).label("depth")).where(
        col(StoredResponse.id) == response_id,
        col(StoredResponse.key_id) == key_id,
        col(StoredResponse.expires_at) > database_now(),
    )
    chain = start.cte("chain", recursive=True)
    before = aliased(StoredResponse)
    step = (
        select(col(before.id), col(before.previous_response_id), col(before.size_bytes), chain.c.depth + 1)
        .join(chain, col(before.id) == chain.c.previous_response_id)
        .where(
            col(before.key_id) == key_id,
            col(before.expires_at) > database_now(),
            chain.c.depth < MAX_TURNS,
        )
    )
    chain = chain.union_all(step)
    return session.execute(
        select(chain.c.id, chain.c.previous_response_id, chain.c.size_bytes).order_by(chain.c.depth)
    ).all()
