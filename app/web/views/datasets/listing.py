"""The list of datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Query, Request, Response
from sqlmodel import Session

from app.datasets import service
from app.datasets.schemas import DatasetSummaryView, summary_view
from app.http.paging import PageQuery
from app.storage.database import ReadSession
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import render_macro, render_page
from app.web.url_state import ListFilters
from app.web.views.datasets.upload import FORMAT_EXAMPLES, upload_options
from app.web.visitor import CurrentVisitor, Visitor, view_router
from trainers.data.formats import RowFormat

PARTS = "datasets/parts.jinja"

router = view_router()


@dataclass(frozen=True)
class DatasetFilters(ListFilters):
    """The filters of the list, all of which are in the URL."""

    format: RowFormat | None
    name: str
    preflights: str
    """"1" shows those that preflights have produced as well."""
    after: str | None


@dataclass(frozen=True)
class DatasetList:
    """The datasets of a page of the list."""

    datasets: Sequence[DatasetSummaryView]
    next: str | None


def dataset_filters(
    format: Literal[""] | RowFormat | None = None,
    name: Annotated[str, Query(max_length=200)] = "",
    preflights: Literal["", "1"] = "",
    after: Annotated[str | None, Query(pattern=r"^dataset_[0-9a-z]{26}$")] = None,
) -> DatasetFilters:
    """Return the filters of a request; an empty field of the form is no filter."""
    return DatasetFilters(format or None, name.strip(), preflights, after)


Filters = Annotated[DatasetFilters, Depends(dataset_filters)]


@router.get("/datasets")
def list_datasets(
    request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters
) -> Response:
    """Show the datasets, newest first, below the form that uploads one."""
    view = _list_view(filters)
    state = view.load(session)
    return render_page(
        request,
        "datasets/list.jinja",
        state=state,
        parts=view.render(state, visitor),
        filters=filters,
        formats=list(RowFormat),
        upload=upload_options(),
        examples=FORMAT_EXAMPLES,
    )


@router.get("/datasets/stream")
def stream_datasets(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the rows that change: runs produce datasets as well."""
    return stream_view(request, _list_view(filters), version)


def _list_view(filters: DatasetFilters) -> LiveView[DatasetList]:
    def load(session: Session) -> DatasetList:
        query = PageQuery(after=filters.after)
        datasets, after = service.list_datasets(
            session,
            query,
            filters.name or None,
            filters.format,
            with_preflights=filters.preflights == "1",
        )
        return DatasetList([summary_view(dataset) for dataset in datasets], after)

    def render(state: DatasetList, visitor: Visitor) -> Parts:
        rows = {
            f"row-{dataset.id}": render_macro(visitor.language, PARTS, "row", dataset)
            for dataset in state.datasets
        }
        return Parts(
            rows=rows,
            table="datasets",
            empty=render_macro(visitor.language, PARTS, "empty_row", filters),
        )

    return LiveView(load, render)
