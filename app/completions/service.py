"""Stored chat completions and responses: listed, read, labelled and deleted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import Session, col

from app.completions import conversations
from app.completions.access import readable_by
from app.completions.rows import load_text
from app.http.auth import Caller
from app.http.errors import NotFound, PayloadTooLarge
from app.http.paging import CursorQuery, paginate_by_id
from app.storage.database import json_text
from app.tables import StoredCompletion, StoredResponse
from trainers.runtime.error_codes import ErrorCode

STORE_HINT = (
    "Only deployments with `store_days` store answers, until that time is over, for the key that sent the "
    "request: {asked}."
)


class StoredCompletionNotFound(NotFound):
    """No chat completion with this id is stored for the caller."""

    code = ErrorCode.stored_completion_not_found


class StoredResponseNotFound(NotFound):
    """No response with this id is stored for the caller."""

    code = ErrorCode.stored_response_not_found


def list_completions(
    session: Session, caller: Caller, cursor: CursorQuery, model: str | None, metadata: Mapping[str, str]
) -> tuple[Sequence[StoredCompletion], bool]:
    """Return a page of the caller's chat completions, and whether more follow."""
    statement = select(StoredCompletion).where(readable_by(StoredCompletion, caller))
    if model is not None:
        statement = statement.where(col(StoredCompletion.model) == model)
    for key, value in metadata.items():
        statement = statement.where(json_text(col(StoredCompletion.client_metadata), key) == value)
    return paginate_by_id(session, statement, col(StoredCompletion.id), cursor)


def get_completion(session: Session, caller: Caller, completion_id: str) -> StoredCompletion:
    """Return a chat completion; raises StoredCompletionNotFound."""
    statement = select(StoredCompletion).where(
        col(StoredCompletion.id) == completion_id, readable_by(StoredCompletion, caller)
    )
    completion = session.scalars(statement).one_or_none()
    if completion is None:
        raise StoredCompletionNotFound(
            f"There is no stored chat completion {completion_id!r}.",
            hint=STORE_HINT.format(asked="chats with `store: true`"),
        )
    return completion


def update_completion(
    session: Session, caller: Caller, completion_id: str, metadata: Mapping[str, str]
) -> StoredCompletion:
    """Replace the metadata of a chat completion; raises StoredCompletionNotFound."""
    completion = get_completion(session, caller, completion_id)
    completion.client_metadata = dict(metadata)
    return completion


def delete_completion(session: Session, caller: Caller, completion_id: str) -> None:
    """Delete a chat completion; raises StoredCompletionNotFound."""
    get_completion(session, caller, completion_id)
    session.execute(delete(StoredCompletion).where(col(StoredCompletion.id) == completion_id))


def list_responses(
    session: Session, caller: Caller, cursor: CursorQuery, model: str | None
) -> tuple[Sequence[StoredResponse], bool]:
    """Return a page of the caller's responses, and whether more follow."""
    statement = select(StoredResponse).where(readable_by(StoredResponse, caller))
    if model is not None:
        statement = statement.where(col(StoredResponse.model) == model)
    return paginate_by_id(session, statement, col(StoredResponse.id), cursor)


def get_response(session: Session, caller: Caller, response_id: str) -> StoredResponse:
    """Return a response; raises StoredResponseNotFound."""
    statement = select(StoredResponse).where(
        col(StoredResponse.id) == response_id, readable_by(StoredResponse, caller)
    )
    response = session.scalars(statement).one_or_none()
    if response is None:
        raise StoredResponseNotFound(
            f"Response with id {response_id!r} not found.",
            hint=STORE_HINT.format(asked="responses without `store: false`"),
        )
    return response


def list_input_items(session: Session, caller: Caller, response_id: str) -> list[dict[str, Any]]:
    """Return the items that a response was generated from, oldest first.

    Raises StoredResponseNotFound, also if a response before it is gone.
    """
    response = get_response(session, caller, response_id)
    earlier: list[bytes] = []
    if response.previous_response_id is not None:
        try:
            earlier = conversations.list_items(session, response.previous_response_id, response.key_id)
        except conversations.PreviousResponseNotFound as error:
            raise StoredResponseNotFound(
                f"The input of {response_id!r} is incomplete: a response before it was deleted or has "
                "expired."
            ) from error
        except conversations.ConversationTooLong as error:
            raise PayloadTooLarge(error.message) from error
    items = [load_text(item.decode()) for item in earlier] + load_text(response.input_items)
    return _with_unique_ids(items)


def delete_response(session: Session, caller: Caller, response_id: str) -> None:
    """Delete a response, after which those that continue it cannot be continued.

    Raises StoredResponseNotFound.
    """
    get_response(session, caller, response_id)
    session.execute(delete(StoredResponse).where(col(StoredResponse.id) == response_id))


def _with_unique_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items with a number added to the id of each repetition.

    Clients and engines may repeat one, but a page begins after the item with an id.
    """
    counts: Counter[str] = Counter()
    for item in items:
        name = item["id"] = str(item.get("id") or "item")
        if counts[name]:
            item["id"] = f"{name}-{counts[name]}"
        counts[name] += 1
    return items
