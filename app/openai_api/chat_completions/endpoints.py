"""OpenAI's stored chat completions: those that were created with `store: true`."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.completions import service
from app.http.auth import CallerDependency
from app.openai_api.chat_completions.schemas import (
    ChatCompletion,
    ChatCompletionDeleted,
    ChatCompletionUpdate,
    CompletionId,
    StoredMessage,
    view_completion,
    view_messages,
)
from app.openai_api.paging import ListPage, OldestFirst, list_page, page_of
from app.openai_api.parameters import MetadataQuery
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/chat/completions", tags=["chat"])


@router.get("")
def list_chat_completions(
    session: ReadSession,
    caller: CallerDependency,
    cursor: OldestFirst,
    metadata: MetadataQuery,
    model: Annotated[
        str | None, Query(max_length=200, description="Return only those that this model name generated.")
    ] = None,
) -> ListPage[ChatCompletion]:
    """List the stored chat completions of the API key; an admin's key lists those of all."""
    rows, has_more = service.list_completions(session, caller, cursor, model, metadata)
    return list_page([view_completion(row) for row in rows], has_more)


@router.get("/{completion_id}")
def get_chat_completion(
    session: ReadSession, caller: CallerDependency, completion_id: CompletionId
) -> ChatCompletion:
    """Return a stored chat completion."""
    return view_completion(service.get_completion(session, caller, completion_id))


@router.post("/{completion_id}")
def update_chat_completion(
    session: WriteSession, caller: CallerDependency, completion_id: CompletionId, body: ChatCompletionUpdate
) -> ChatCompletion:
    """Replace the metadata of a stored chat completion."""
    return view_completion(service.update_completion(session, caller, completion_id, body.metadata or {}))


@router.delete("/{completion_id}")
def delete_chat_completion(
    session: WriteSession, caller: CallerDependency, completion_id: CompletionId
) -> ChatCompletionDeleted:
    """Delete a stored chat completion."""
    service.delete_completion(session, caller, completion_id)
    return ChatCompletionDeleted(id=completion_id, object="chat.completion.deleted", deleted=True)


@router.get("/{completion_id}/messages")
def list_chat_completion_messages(
    session: ReadSession, caller: CallerDependency, completion_id: CompletionId, cursor: OldestFirst
) -> ListPage[StoredMessage]:
    """List the messages of the request of a stored chat completion."""
    return page_of(view_messages(service.get_completion(session, caller, completion_id)), cursor)
