"""The page of an evaluation: scores with intervals, differences, slices, gates, and its rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Path, Query, Request, Response
from sqlmodel import Session

from app.evaluations import rows, service
from app.evaluations.schemas import (
    EvaluationRowView,
    EvaluationSummaryView,
    EvaluationView,
    RowFilter,
    evaluation_summary_view,
)
from app.evaluations.service import EvaluationFilters
from app.http.errors import HttpError
from app.http.paging import PageQuery
from app.jobs.service import list_runs
from app.storage.database import read_session
from app.tables import Run
from app.web.plots.scale import PlotScale, fit_scale
from app.web.rendering import render_page
from app.web.url_state import encode_query
from app.web.visitor import view_router
from trainers.configs import StageKind
from trainers.evaluation.results import PairedDifference

PAGE_ROWS = 20
MAX_MODELS = 20

router = view_router()

EvaluationId = Annotated[str, Path(pattern=r"^evaluation_[0-9a-z]{1,40}$")]
Text = Annotated[str, Query(max_length=1024)]
Position = Annotated[int, Query(ge=0, lt=2**31)]


@dataclass(frozen=True)
class RowQuery:
    """Which rows are shown, and with which evaluation they are compared; all of it is in the URL."""

    metric: str
    filter: RowFilter | None
    against: str
    after: int

    def query(self, **changes: object) -> str:
        """Return the query of this page with other values, from its first row unless that is given."""
        return encode_query({**vars(self), "after": None, **changes})


@dataclass(frozen=True)
class RowPage:
    """A page of rows, or the reason why there is none."""

    rows: Sequence[EvaluationRowView]
    next: int | None
    error: HttpError | None = None


@router.get("/evaluations/{evaluation_id}")
def show_evaluation(
    request: Request,
    evaluation_id: EvaluationId,
    metric: Text = "",
    filter: RowFilter | None = None,
    against: Annotated[str, Query(max_length=64)] = "",
    after: Position = 0,
) -> Response:
    """Show an evaluation, and its rows: those first that differ most from the other model's."""
    query = RowQuery(metric, filter, against, after)
    with read_session() as session:
        evaluation = service.view_evaluation(session, service.get_evaluation(session, evaluation_id))
        models = _list_models(session, evaluation, against)
        gates = list_gates(session, evaluation.job_id)
    return render_page(
        request,
        "evaluations/page.jinja",
        evaluation=evaluation,
        models=models,
        other=_find_other(models, evaluation, against),
        scales=scale_metrics(models),
        difference_scales=scale_differences(evaluation.differences),
        gates=gates,
        query=query,
        page=read_rows(evaluation_id, query),
        filters=list(RowFilter),
    )


def list_gates(session: Session, job_id: str) -> list[Run]:
    """Return the gates of a job, whose results or errors contain their decisions."""
    return [run for run in list_runs(session, job_id) if run.stage is StageKind.gate]


def scale_metrics(models: Iterable[EvaluationSummaryView]) -> Mapping[str, PlotScale]:
    """Return a scale for each metric, on which the values and intervals of all models are."""
    values: dict[str, list[float]] = {}
    for model in models:
        for score in model.scores:
            values.setdefault(score.metric, []).extend((score.value, *(score.interval_95 or ())))
    return {metric: fit_scale(found) for metric, found in values.items()}


def scale_differences(differences: Iterable[PairedDifference]) -> Mapping[str, PlotScale]:
    """Return a scale for each metric, on which 0 and the differences of all models are."""
    values: dict[str, list[float]] = {}
    for each in differences:
        values.setdefault(each.metric, [0.0]).extend((each.difference, *(each.interval_95 or ())))
    return {metric: fit_scale(found) for metric, found in values.items()}


def read_rows(evaluation_id: str, query: RowQuery) -> RowPage:
    """Return a page of rows; a filter that does not apply, or a damaged file, is its error."""
    against, metric = query.against or None, query.metric or None
    try:
        found, after = rows.list_rows(evaluation_id, against, metric, query.filter, query.after, PAGE_ROWS)
    except HttpError as error:
        return RowPage([], None, error)
    return RowPage(found, after)


def _list_models(
    session: Session, evaluation: EvaluationView, against: str
) -> Sequence[EvaluationSummaryView]:
    """Return this evaluation, those of the other models of its run, and the one to compare with."""
    of_run = EvaluationFilters(run=evaluation.run_id)
    found, _ = service.list_evaluations(session, PageQuery(limit=MAX_MODELS), of_run)
    models = [evaluation_summary_view(each) for each in found]
    if against and against not in {model.id for model in models}:
        models.append(evaluation_summary_view(service.get_evaluation(session, against)))
    return sorted(models, key=lambda model: (model.id != evaluation.id, model.id))


def _find_other(
    models: Sequence[EvaluationSummaryView], evaluation: EvaluationView, against: str
) -> EvaluationSummaryView | None:
    """Return the evaluation that rows are compared with: by default the baseline of the run."""
    if against:
        return next(model for model in models if model.id == against)
    others = (model for model in models if model.run_id == evaluation.run_id and model.id != evaluation.id)
    return next((model for model in others if model.role == rows.BASELINE), None)
