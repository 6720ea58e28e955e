"""Keyset pagination: a page starts after the last item of the previous one, so all pages cost the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import Select
from sqlmodel import Session

Item = TypeVar("Item")
DEFAULT_LIMIT = 50
MAX_LIMIT = 200

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of items on the page.")]


class Page(BaseModel, Generic[Item]):
    """A page of a list."""

    items: list[Item] = Field(description="Items of the page, in order.")
    next: str | int | None = Field(description="Value of `after` for the next page; null on the last page.")


class PageQuery(BaseModel):
    """The query of a page of a list from newest to oldest."""

    limit: int = DEFAULT_LIMIT
    after: str | None = None


class EventPageQuery(BaseModel):
    """The query of a page of a list in the order of `seq`."""

    limit: int = DEFAULT_LIMIT
    after: int = 0


def _page_query(
    limit: Limit = DEFAULT_LIMIT,
    after: Annotated[
        str | None,
        Query(
            pattern=r"^[a-z]+_[0-9a-z]{26}$", description="`next` of the previous page: its last item's id."
        ),
    ] = None,
) -> PageQuery:
    return PageQuery(limit=limit, after=after)


def _event_page_query(
    limit: Limit = DEFAULT_LIMIT,
    after: Annotated[
        int, Query(ge=0, lt=2**31, description="`next` of the previous page: its last item's `seq`.")
    ] = 0,
) -> EventPageQuery:
    return EventPageQuery(limit=limit, after=after)


Paging = Annotated[PageQuery, Depends(_page_query)]
EventPaging = Annotated[EventPageQuery, Depends(_event_page_query)]


def paginate_newest_first(
    session: Session, statement: Select[Any], key: Any, paging: PageQuery
) -> tuple[Sequence[Any], str | None]:
    """Return the page's rows from newest to oldest, and its `next`.

    `key` is a column of ids that equals the rows' `id`: the last column of the statement's most selective
    index.
    """
    if paging.after is not None:
        statement = statement.where(key < paging.after)
    rows, has_more = _read_page(session, statement.order_by(key.desc()), paging.limit)
    return rows, rows[-1].id if has_more else None


def paginate_by_seq(
    session: Session, statement: Select[Any], key: Any, paging: EventPageQuery
) -> tuple[Sequence[Any], int | None]:
    """Return the page's rows in ascending order of `key`, which is their `seq`, and its `next`."""
    statement = statement.where(key > paging.after).order_by(key)
    rows, has_more = _read_page(session, statement, paging.limit)
    return rows, rows[-1].seq if has_more else None


def _read_page(session: Session, statement: Select[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """Return at most `limit` rows, and whether there are more, which one additional row shows."""
    rows = session.scalars(statement.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


@dataclass(frozen=True)
class CursorQuery:
    """The query of a page in OpenAI's terms: after the item with an id, in the order of age."""

    limit: int
    after: str | None = None
    descending: bool = True


def paginate_by_id(
    session: Session, statement: Select[Any], key: Any, cursor: CursorQuery
) -> tuple[Sequence[Any], bool]:
    """Return the page's rows in the order of their ids, which is that of their age, and whether more follow.

    `key` is the column of the ids. An `after` whose row is gone is still a position.
    """
    if cursor.after is not None:
        statement = statement.where(key < cursor.after if cursor.descending else key > cursor.after)
    return _read_page(session, statement.order_by(key.desc() if cursor.descending else key), cursor.limit)
