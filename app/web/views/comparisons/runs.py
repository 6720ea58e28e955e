"""Runs next to each other: curves in one plot, best and last values, and what their configs differ in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request, Response
from sqlmodel import Session

from app.http.paging import PageQuery
from app.jobs.replays.difference import compare_configs
from app.runs.curves.main_metric import MetricChoice, MetricSummaryView, choose_value
from app.runs.curves.overlay import RunCurve, choose_metric, list_metrics, read_curve, smooth_values
from app.runs.listing import RunFilters, list_runs
from app.runs.schemas import RunSummaryView, run_summary_view
from app.runs.service import get_run
from app.storage.database import ReadSession
from app.tables import Run
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.plots.scale import PlotScale, draw_line, fit_scale
from app.web.rendering import render_macro, render_page
from app.web.url_state import encode_query
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "comparisons/parts.jinja"
# As many lines can be told from each other in a plot.
MAX_RUNS = 6

router = view_router()

RunIds = Annotated[list[str] | None, Query(max_length=20)]
Metric = Annotated[str, Query(max_length=200)]
Step = Annotated[int, Query(ge=0, lt=2**31)]
After = Annotated[str | None, Query(pattern=r"^run_[0-9a-z]{26}$")]


@dataclass(frozen=True)
class CurveQuery:
    """What is drawn: a metric, between two steps, and how much it is smoothed; all of it is in the URL."""

    metric: str = ""
    first: int = 0
    last: int | None = None
    smooth: float = 0

    def fields(self) -> dict[str, object]:
        """Return the fields of the URL that are not those without a choice."""
        return {
            "metric": self.metric,
            "first": self.first or None,
            "last": self.last,
            "smooth": self.smooth or None,
        }


def curve_query(
    metric: Metric = "",
    first: Literal[""] | Step = "",
    last: Literal[""] | Step = "",
    smooth: Annotated[float, Query(ge=0, le=0.99)] = 0,
) -> CurveQuery:
    """Return the choices of a request; an empty field of the form is none."""
    return CurveQuery(metric, first or 0, last if last != "" else None, smooth)


Curve = Annotated[CurveQuery, Depends(curve_query)]


@dataclass(frozen=True)
class ComparedRuns:
    """The chosen runs, their curves of one metric, and what they differ in."""

    runs: Sequence[RunSummaryView]
    metrics: Sequence[str]
    metric: str | None
    curves: Sequence[RunCurve]
    summaries: Sequence[Mapping[str, MetricSummaryView]]
    configs: Sequence[tuple[str, Sequence[Any]]]
    drawn: CurveQuery

    @property
    def steps(self) -> PlotScale:
        """The scale of the steps, which begins at 0 unless another first step is chosen."""
        last = max((curve.steps[-1] for curve in self.curves if curve.steps), default=1)
        return PlotScale(self.drawn.first, max(last, self.drawn.first + 1))

    @property
    def values(self) -> PlotScale:
        """The scale of the values."""
        return fit_scale(value for curve in self.curves for value in curve.values)

    def draw(self, curve: RunCurve) -> str:
        """Return the points of a curve."""
        return draw_line(curve.steps, curve.values, self.steps, self.values)

    def draw_smoothed(self, curve: RunCurve) -> str:
        """Return the points of a smoothed curve."""
        smoothed = smooth_values(curve.values, self.drawn.smooth)
        return draw_line(curve.steps, smoothed, self.steps, self.values)

    def choice(self, metric: str) -> MetricChoice:
        """Return which value of a metric is its best one."""
        return choose_value(metric)


@dataclass(frozen=True)
class RunChoice:
    """The runs from which some are chosen, newest first."""

    runs: Sequence[RunSummaryView]
    next: str | None


@router.get("/compare")
def compare_runs(
    request: Request,
    session: ReadSession,
    visitor: CurrentVisitor,
    drawn: Curve,
    run: RunIds = None,
    after: After = None,
) -> Response:
    """Compare runs, and let others be chosen."""
    ids = list(dict.fromkeys(run or []))[:MAX_RUNS]
    view = _compare_view(ids, drawn)
    state = view.load(session)
    found, following = list_runs(session, PageQuery(after=after), RunFilters())
    choice = RunChoice([run_summary_view(each) for each in found], following)
    return render_page(
        request,
        "comparisons/runs.jinja",
        state=state,
        parts=view.render(state, visitor),
        choice=choice,
        query=encode_query({"run": ids, **drawn.fields()}),
        more=encode_query({"run": ids, **drawn.fields(), "after": following}),
        limit=MAX_RUNS,
    )


@router.get("/compare/stream")
def stream_compared(request: Request, drawn: Curve, run: RunIds = None, version: Version = "") -> Response:
    """Stream the curves and values that change."""
    return stream_view(request, _compare_view(list(run or [])[:MAX_RUNS], drawn), version)


def _compare_view(ids: Sequence[str], drawn: CurveQuery) -> LiveView[ComparedRuns]:
    def load(session: Session) -> ComparedRuns:
        runs = [get_run(session, run_id) for run_id in ids]
        metrics = list_metrics(runs)
        chosen = drawn.metric if drawn.metric in metrics else choose_metric(metrics)
        return ComparedRuns(
            runs=[run_summary_view(run) for run in runs],
            metrics=metrics,
            metric=chosen,
            curves=[_read_curve(session, run, chosen, drawn) for run in runs] if chosen else [],
            summaries=[
                {name: MetricSummaryView.model_validate(each) for name, each in (run.metrics or {}).items()}
                for run in runs
            ],
            configs=compare_configs(runs),
            drawn=drawn,
        )

    def render(state: ComparedRuns, visitor: Visitor) -> Parts:
        language = visitor.language
        return Parts(
            {
                "compared-runs": render_macro(language, PARTS, "compared_runs", state),
                "curves": render_macro(language, PARTS, "curves", state),
                "values": render_macro(language, PARTS, "values", state),
            }
        )

    return LiveView(load, render)


def _read_curve(session: Session, run: Run, metric: str, drawn: CurveQuery) -> RunCurve:
    return read_curve(session, run, metric, first_step=drawn.first, last_step=drawn.last)
