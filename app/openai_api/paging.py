"""Pages of a list in OpenAI's shape, which its clients follow by the id of the last item."""

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, Field

from app.http.errors import field_error
from app.http.paging import CursorQuery

Item = TypeVar("Item", bound=BaseModel)
DEFAULT_LIMIT = 20
MAX_LIMIT = 100
MAX_ID_LENGTH = 200

Order = Annotated[Literal["asc", "desc"], Query(description="Order of the creation times.")]
After = Annotated[
    str | None,
    Query(max_length=MAX_ID_LENGTH, description="Id of the last item of the previous page."),
]


class ListPage(BaseModel, Generic[Item]):
    """A page of a list."""

    object: Literal["list"] = Field(description="Always `list`.")
    data: list[Item] = Field(description="Items of the page, in order.")
    first_id: str | None = Field(description="Id of the first item; null on an empty page.")
    last_id: str | None = Field(description="Id of the last item, the `after` of the next page.")
    has_more: bool = Field(description="Whether another page follows.")


def list_page(items: Sequence[Item], has_more: bool) -> ListPage[Item]:
    """Return the page with these items."""
    ids = [str(item.id) for item in items]  # type: ignore[attr-defined]  # Every item in a list has an id.
    return ListPage(
        object="list",
        data=list(items),
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=has_more,
    )


def _cursor(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of items.")] = DEFAULT_LIMIT,
    after: After = None,
    order: Order = "desc",
) -> CursorQuery:
    return CursorQuery(limit, after, order == "desc")


def _newest_first(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of items.")] = DEFAULT_LIMIT,
    after: After = None,
) -> CursorQuery:
    return CursorQuery(limit, after)


def _oldest_first(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of items.")] = DEFAULT_LIMIT,
    after: After = None,
    order: Order = "asc",
) -> CursorQuery:
    return CursorQuery(limit, after, order == "desc")


def page_of(items: Sequence[Item], cursor: CursorQuery) -> ListPage[Item]:
    """Return a page of a complete list, given oldest first; raises UnprocessableContent for its `after`."""
    ordered = list(reversed(items)) if cursor.descending else list(items)
    start = 0
    if cursor.after is not None:
        ids = [item.id for item in ordered]  # type: ignore[attr-defined]  # As in `list_page`.
        if cursor.after not in ids:
            raise field_error("after", f"The list has no item {cursor.after!r}.")
        start = ids.index(cursor.after) + 1
    end = start + cursor.limit
    return list_page(ordered[start:end], len(ordered) > end)


OldestFirst = Annotated[CursorQuery, Depends(_oldest_first)]
Cursor = Annotated[CursorQuery, Depends(_cursor)]
NewestFirst = Annotated[CursorQuery, Depends(_newest_first)]
