"""The list of evaluations, from which some are chosen to compare, and the leaderboard of a dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Response
from sqlmodel import Session

from app.evaluations.leaderboard import view_leaderboard
from app.evaluations.schemas import EvaluationSummaryView, LeaderboardView, evaluation_summary_view
from app.evaluations.service import EvaluationFilters, list_evaluations
from app.http.paging import PageQuery
from app.storage.database import ReadSession
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.plots.scale import PlotScale, fit_scale
from app.web.rendering import render_macro, render_page
from app.web.url_state import ListFilters
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "evaluations/parts.jinja"

router = view_router()

Text = Annotated[str, Query(max_length=1024)]


@dataclass(frozen=True)
class EvaluationQuery(ListFilters):
    """The filters of the list, all of which are in the URL."""

    dataset: str = ""
    model: str = ""
    metric: str = ""
    job: str = ""
    run: str = ""
    after: str | None = None

    def filters(self) -> EvaluationFilters:
        """Return the filters of the service; an empty field of the form is no filter."""
        names = ("dataset", "model", "job", "run", "metric")
        return EvaluationFilters(**{name: getattr(self, name) or None for name in names})


@dataclass(frozen=True)
class EvaluationList:
    """The evaluations of a page of the list."""

    evaluations: Sequence[EvaluationSummaryView]
    next: str | None


def evaluation_query(
    dataset: Text = "",
    model: Text = "",
    metric: Text = "",
    job: Text = "",
    run: Text = "",
    after: Annotated[str | None, Query(pattern=r"^evaluation_[0-9a-z]{26}$")] = None,
) -> EvaluationQuery:
    """Return the filters of a request."""
    return EvaluationQuery(dataset.strip(), model.strip(), metric.strip(), job.strip(), run.strip(), after)


Filters = Annotated[EvaluationQuery, Depends(evaluation_query)]


@router.get("/evaluations")
def list_all(request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters) -> Response:
    """Show the evaluations, newest first."""
    view = _list_view(filters)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "evaluations/list.jinja", state=state, parts=parts, filters=filters)


@router.get("/evaluations/stream")
def stream_all(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(filters), version)


@router.get("/leaderboard")
def show_leaderboard(request: Request, session: ReadSession, dataset: Text, metric: Text) -> Response:
    """Rank the models that were evaluated on a dataset."""
    board = view_leaderboard(session, dataset, metric)
    scales = _scale_rankings(board)
    return render_page(request, "evaluations/leaderboard.jinja", board=board, scales=scales)


def _scale_rankings(board: LeaderboardView) -> Mapping[int, PlotScale]:
    return {
        position: fit_scale(
            value for entry in ranking.entries for value in (entry.value, *(entry.interval_95 or ()))
        )
        for position, ranking in enumerate(board.rankings)
    }


def _list_view(filters: EvaluationQuery) -> LiveView[EvaluationList]:
    def load(session: Session) -> EvaluationList:
        found, after = list_evaluations(session, PageQuery(after=filters.after), filters.filters())
        return EvaluationList([evaluation_summary_view(each) for each in found], after)

    def render(state: EvaluationList, visitor: Visitor) -> Parts:
        rows = {
            f"row-{each.id}": render_macro(visitor.language, PARTS, "row", each, filters)
            for each in state.evaluations
        }
        empty = render_macro(visitor.language, PARTS, "empty_row", filters)
        return Parts(rows=rows, table="evaluations", empty=empty)

    return LiveView(load, render)
