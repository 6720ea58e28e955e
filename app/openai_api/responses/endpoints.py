"""OpenAI's stored responses: retrieved, deleted, and their input items."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from app.completions import service
from app.http.auth import CallerDependency
from app.http.errors import NotFound
from app.openai_api.paging import Cursor, ListPage, page_of
from app.openai_api.responses.events import replay
from app.openai_api.responses.schemas import (
    InputItem,
    ResponseDeleted,
    ResponseId,
    ResponseObject,
    StreamQuery,
    check_includes,
    read_stream_query,
    view_input_item,
    view_response,
)
from app.storage.database import ReadSession, WriteSession
from trainers.runtime.error_codes import ErrorCode

EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {"schema": {"type": "string", "description": "Server-sent events, with `stream`."}}
}

router = APIRouter(prefix="/responses", tags=["responses"])


class MethodNotOffered(NotFound):
    """A method of OpenAI's Responses API that this service does not have."""

    code = ErrorCode.not_offered


@router.post("/compact", include_in_schema=False)
@router.post("/input_tokens", include_in_schema=False)
@router.post("/{response_id}/cancel", include_in_schema=False)
def refuse_method() -> None:
    """Refuse a method by name."""
    raise MethodNotOffered(
        "This method of the Responses API is not offered: responses are not created in the background, and "
        "conversations are neither compacted nor counted here.",
        hint="To stop a response, close its stream. The tokens of an input are in `usage` of its response.",
    )


@router.get(
    "/{response_id}",
    dependencies=[Depends(check_includes)],
    response_model=ResponseObject,
    responses={200: {"content": EVENT_STREAM}},
)
def get_response(
    session: ReadSession,
    caller: CallerDependency,
    response_id: ResponseId,
    query: Annotated[StreamQuery, Depends(read_stream_query)],
) -> ResponseObject | Response:
    """Return a stored response, also as the events of a stream."""
    response = view_response(service.get_response(session, caller, response_id))
    if not query.stream:
        return response
    return Response(replay(response.model_dump(), query.after), media_type="text/event-stream")


@router.delete("/{response_id}")
def delete_response(
    session: WriteSession, caller: CallerDependency, response_id: ResponseId
) -> ResponseDeleted:
    """Delete a stored response; those that continue it stay, but cannot be continued."""
    service.delete_response(session, caller, response_id)
    return ResponseDeleted(id=response_id, object="response", deleted=True)


@router.get("/{response_id}/input_items", dependencies=[Depends(check_includes)])
def list_response_input_items(
    session: ReadSession, caller: CallerDependency, response_id: ResponseId, cursor: Cursor
) -> ListPage[InputItem]:
    """List the items that a response was generated from, with those of the responses before it."""
    items = service.list_input_items(session, caller, response_id)
    return page_of([view_input_item(item) for item in items], cursor)
