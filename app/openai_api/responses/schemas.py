"""The shapes of OpenAI's stored responses."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.completions.rows import load_text
from app.http.errors import field_error
from app.tables import StoredResponse

ResponseId = Annotated[str, Field(max_length=64, description="Id of a response, `resp_…`.")]
Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


MAX_SEQUENCE_NUMBER = 2**31 - 1


class ResponseObject(BaseModel):
    """A response as it was generated."""

    model_config = ConfigDict(extra="allow")

    id: ResponseId
    object: Literal["response"] = Field(description="Always `response`.")
    created_at: float = Field(description="Unix time of the response.")
    status: str = Field(description="`completed` or `incomplete`.")
    model: str = Field(description="Model name of the request.")
    output: list[dict[str, Any]] = Field(description="The generated items.")
    previous_response_id: str | None = Field(description="The response that this one continues.")
    store: bool = Field(description="Always true.")
    expires_at: int = Field(description="Unix time of the deletion; not in OpenAI's API.")


class ResponseDeleted(BaseModel):
    """The response to a deletion."""

    id: ResponseId
    object: Literal["response"] = Field(description="Always `response`.")
    deleted: bool = Field(description="Always true.")


class InputItem(BaseModel):
    """An item of the input: a message, or a call of a tool or its output."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="Id of the item.")
    type: str = Field(description="Type of the item, such as `message`.")


async def check_includes(
    include: Annotated[
        list[Includable],
        Query(
            alias="include[]",
            max_length=8,
            description="No effect: a stored response has all that it was created with.",
        ),
    ] = [],  # noqa: B006 — FastAPI copies defaults
) -> None:
    """Accept the parts of a response that OpenAI leaves out unless asked."""


@dataclass(frozen=True)
class StreamQuery:
    """Whether a response is requested as a stream, and the last event that the client has."""

    stream: bool
    after: int | None


async def read_stream_query(
    stream: Annotated[
        bool | None, Query(description="Return the events that would have generated it in one piece.")
    ] = None,
    starting_after: Annotated[
        int | None,
        Query(ge=0, le=MAX_SEQUENCE_NUMBER, description="With `stream`: omit the events up to this number."),
    ] = None,
    include_obfuscation: Annotated[
        bool | None, Query(description="No effect: events are not obfuscated.")
    ] = None,
) -> StreamQuery:
    """Return the query of a stream; raises UnprocessableContent for `starting_after` without one."""
    if starting_after is not None and not stream:
        raise field_error("starting_after", "It needs stream=true.")
    return StreamQuery(bool(stream), starting_after)


def view_response(row: StoredResponse) -> ResponseObject:
    """Return a stored response in OpenAI's shape."""
    return ResponseObject(**load_text(row.response), expires_at=int(row.expires_at.timestamp()))


def view_input_item(item: dict[str, Any]) -> InputItem:
    """Return an item in OpenAI's shape."""
    return InputItem(**item)
