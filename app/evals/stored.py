"""Stored chat completions and responses as the items of a run.

Each becomes an item with the messages of its request as `input`, and its answer as the sample. Only those are
found that the caller could list, page by page: no session is open while their rows are written.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from app.completions import service as completions
from app.completions.rows import load_text
from app.completions.service import StoredResponseNotFound
from app.evals.data_source import SourceRow, StoredCompletionsSource, StoredResponsesSource
from app.http.auth import Caller
from app.http.errors import PayloadTooLarge
from app.http.paging import CursorQuery
from app.storage.database import read_session
from app.tables import StoredCompletion, StoredResponse

PAGE = 100
Json = dict[str, Any]


def list_stored(
    caller: Caller, source: StoredCompletionsSource | StoredResponsesSource, metadata: Mapping[str, str]
) -> Iterator[tuple[int, SourceRow]]:
    """Yield what the filters of a source find with further metadata, newest first, numbered from 1."""
    filters = {**metadata, **(source.metadata or {})}
    if any(filters[name] != value for name, value in metadata.items()):
        return
    number = 0
    for row in _list_answers(caller, source, filters):
        found = _read_completion(row) if isinstance(row, StoredCompletion) else _read_response(caller, row)
        if found is None:
            continue
        number += 1
        yield number, found
        if number == source.limit:
            return


def _list_answers(
    caller: Caller, source: StoredCompletionsSource | StoredResponsesSource, metadata: Mapping[str, str]
) -> Iterator[StoredCompletion | StoredResponse]:
    after: str | None = None
    while True:
        cursor = CursorQuery(PAGE, after)
        rows: Any
        with read_session() as session:
            if isinstance(source, StoredCompletionsSource):
                rows, more = completions.list_completions(session, caller, cursor, source.model, metadata)
            else:
                rows, more = completions.list_responses(session, caller, cursor, source.model)
        for row in rows:
            created_at = int(row.created_at.timestamp())
            if source.created_after is not None and created_at < source.created_after:
                return
            if source.created_before is not None and created_at > source.created_before:
                continue
            if isinstance(source, StoredCompletionsSource) or matches(
                source, metadata, load_text(row.response)
            ):
                yield row
        if not more:
            return
        after = rows[-1].id


def _read_completion(row: StoredCompletion) -> SourceRow:
    request, completion = load_text(row.request), load_text(row.completion)
    item = _describe(row, request, row.client_metadata) | {"input": request.get("messages") or []}
    return SourceRow(item=item, sample={"choices": completion["choices"]})


def _read_response(caller: Caller, row: StoredResponse) -> SourceRow | None:
    """Return a response as an item; None if one that it continues is gone."""
    response = load_text(row.response)
    try:
        with read_session() as session:
            items = completions.list_input_items(session, caller, row.id)
    except (StoredResponseNotFound, PayloadTooLarge):
        return None
    messages = as_messages(items)
    if isinstance(instructions := response.get("instructions"), str):
        messages.insert(0, {"role": "system", "content": instructions})
    answers = as_messages(response["output"])
    texts = [answer["content"] for answer in answers if answer.get("content")]
    calls = [call for answer in answers for call in answer.get("tool_calls", [])]
    item = _describe(row, response, response.get("metadata") or {}) | {"input": messages}
    return SourceRow(item=item, sample={"output_text": "".join(texts), "output_tools": calls})


def _describe(row: StoredCompletion | StoredResponse, request: Json, metadata: Mapping[str, Any]) -> Json:
    offered = {"tools": request["tools"]} if request.get("tools") else {}
    created_at = int(row.created_at.timestamp())
    return {"id": row.id, "model": row.model, "created_at": created_at, "metadata": dict(metadata), **offered}


def matches(source: StoredResponsesSource, metadata: Mapping[str, str], response: Json) -> bool:
    """Return whether a response has what the filters of a source and the metadata name."""
    found = response.get("metadata") or {}
    reasoning = response.get("reasoning") or {}
    tools = {tool.get("name") for tool in response.get("tools") or [] if isinstance(tool, dict)}
    instructions = response.get("instructions")
    return (
        all(found.get(name) == value for name, value in metadata.items())
        and (source.temperature is None or response.get("temperature") == source.temperature)
        and (source.top_p is None or response.get("top_p") == source.top_p)
        and source.reasoning_effort in (None, reasoning.get("effort"))
        and tools.issuperset(source.tools or [])
        and (not source.users or response.get("user") in source.users)
        and (
            source.instructions_search is None
            or (isinstance(instructions, str) and source.instructions_search in instructions)
        )
    )


def as_messages(items: list[Json]) -> list[Json]:
    """Return the items of a response as messages of a chat; what a chat has no form for is left out."""
    messages: list[Json] = []
    for item in items:
        match item.get("type", "message"):
            case "message":
                messages.append(
                    {"role": item.get("role", "assistant"), "content": _join(item.get("content"))}
                )
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            case "function_call_output":
                output = {"role": "tool", "tool_call_id": item.get("call_id")}
                messages.append(output | {"content": _join(item.get("output"))})
    return messages


def _join(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))
