"""Keyset pages: each begins after the last item of the one before, so the last costs what the first does."""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import Select
from sqlmodel import Session

Item = TypeVar("Item")
DEFAULT_LIMIT = 50
MAX_LIMIT = 200

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items on the page.")]


class Page(BaseModel, Generic[Item]):
    """Items in order, and where the next page begins."""

    items: list[Item]
    next: str | int | None = Field(description="Value of `after` for the next page; null on the last page.")


class PageQuery(BaseModel):
    """Which page of a list that is ordered from new to old."""

    limit: int = DEFAULT_LIMIT
    after: str | None = None


class EventPageQuery(BaseModel):
    """Which page of a list that is ordered by `seq`."""

    limit: int = DEFAULT_LIMIT
    after: int = 0


def _page_query(
    limit: Limit = DEFAULT_LIMIT,
    after: Annotated[
        str | None,
        Query(pattern=r"^[a-z]+_[0-9a-z]{26}$", description="`next` of the page before: its last item's id."),
    ] = None,
) -> PageQuery:
    return PageQuery(limit=limit, after=after)


def _event_page_query(
    limit: Limit = DEFAULT_LIMIT,
    after: Annotated[
        int, Query(ge=0, lt=2**31, description="`seq` of the last item of the page before.")
    ] = 0,
) -> EventPageQuery:
    return EventPageQuery(limit=limit, after=after)


Paging = Annotated[PageQuery, Depends(_page_query)]
EventPaging = Annotated[EventPageQuery, Depends(_event_page_query)]


def paginate_newest_first(
    session: Session, statement: Select[Any], key: Any, paging: PageQuery
) -> tuple[Sequence[Any], str | None]:
    """The page's rows from new to old by `key`, a column of ids, and the `next` of the page.

    `key` is the column that the statement's most selective index ends with; it equals the rows' `id`.
    """
    if paging.after is not None:
        statement = statement.where(key < paging.after)
    rows, more = _cut(session, statement.order_by(key.desc()), paging.limit)
    return rows, rows[-1].id if more else None


def paginate_by_seq(
    session: Session, statement: Select[Any], key: Any, paging: EventPageQuery
) -> tuple[Sequence[Any], int | None]:
    """The page's rows by `key`, an ascending `seq`, and the `next` of the page."""
    statement = statement.where(key > paging.after).order_by(key)
    rows, more = _cut(session, statement, paging.limit)
    return rows, rows[-1].seq if more else None


def _cut(session: Session, statement: Select[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """At most `limit` rows, and whether there are more: one row beyond the page is read to know."""
    rows = session.scalars(statement.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
