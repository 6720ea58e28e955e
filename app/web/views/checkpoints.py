"""The checkpoints of a run: their values, and what can be done with each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Form, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from sqlmodel import Session

from app.checkpoints.schemas import CheckpointView
from app.checkpoints.service import BestCheckpoint, choose_metric, find_best, list_checkpoints
from app.checkpoints.uses import CheckpointUseState, list_uses
from app.datasets.service import list_datasets
from app.deployments.schemas import DeploymentCreate
from app.deployments.service import create_deployment
from app.http.paging import PageQuery
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.runs.schemas import RunSummaryView, run_summary_view
from app.runs.service import get_run
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import Dataset
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import render_macro, render_page
from app.web.url_state import encode_query
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "checkpoints/parts.jinja"
# Each has four buttons or reasons, so as many take the time of 50 plain rows.
PAGE_CHECKPOINTS = 25
# Metrics that need no further values; a job spec can name all.
SIMPLE_METRICS = ("exact_match", "maths_exact_match", "chrf", "bleu", "rouge_l", "f1")

router = view_router()

RunId = Annotated[str, Path(pattern=r"^run_[0-9a-z]{1,40}$")]
After = Annotated[str | None, Query(pattern=r"^checkpoint_[0-9a-z]{26}$")]
Step = Annotated[int | None, Query(ge=0, lt=2**31)]


@dataclass(frozen=True)
class CheckpointList:
    """The checkpoints of a page of the list, their uses, and the one that is selected by its step."""

    run: RunSummaryView
    checkpoints: Sequence[CheckpointView]
    uses: Mapping[str, Sequence[CheckpointUseState]]
    best: BestCheckpoint | None
    metric: str | None
    selected: CheckpointView | None
    datasets: Sequence[tuple[str, str]]
    """The ids and names of the newest datasets, on which the selected one can be evaluated."""
    after: str | None
    next: str | None
    metrics: Sequence[str] = SIMPLE_METRICS

    @property
    def has_best(self) -> bool:
        """Whether the best checkpoint is on this page."""
        return self.best is not None and any(each.step == self.best.value.step for each in self.checkpoints)

    def query(self, **changes: object) -> str:
        """Return the query of this list with another selection or position."""
        step = self.selected.step if self.selected is not None else None
        return encode_query({"after": self.after, "step": step, **changes})


@router.get("/runs/{run_id}/checkpoints")
def show_checkpoints(
    request: Request,
    session: ReadSession,
    visitor: CurrentVisitor,
    run_id: RunId,
    after: After = None,
    step: Step = None,
) -> Response:
    """Show the checkpoints of a run, newest first, and what the selected one can be used for."""
    view = _checkpoint_view(run_id, after, step)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "checkpoints/list.jinja", state=state, parts=parts)


@router.get("/runs/{run_id}/checkpoints/stream")
def stream_checkpoints(
    request: Request, run_id: RunId, after: After = None, step: Step = None, version: Version = ""
) -> Response:
    """Stream the parts that change."""
    return stream_view(request, _checkpoint_view(run_id, after, step), version)


@router.post("/runs/{run_id}/checkpoints/evaluate")
def evaluate_checkpoint(
    session: WriteSession,
    visitor: CurrentVisitor,
    run_id: RunId,
    dataset: Annotated[str, Form(max_length=64)],
    metric: Annotated[str, Form(max_length=64)],
    step: Annotated[int, Form(ge=0, lt=2**31)],
) -> Response:
    """Submit a job that evaluates a checkpoint on a dataset."""
    assert visitor.caller is not None
    stage = {
        "stage": "evaluate",
        "model": {"run": run_id, "step": step},
        "dataset": dataset,
        "metrics": [{"metric": metric}],
    }
    spec = parse_form(JobCreate, name=f"evaluate-step-{step}", stages=[stage])
    job, _ = jobs.create_job(session, get_settings(), spec, visitor.caller.key_id, None)
    return RedirectResponse(f"/jobs/{job.id}", 303)


@router.post("/runs/{run_id}/checkpoints/deploy")
def deploy_checkpoint(
    session: WriteSession,
    visitor: CurrentVisitor,
    run_id: RunId,
    model: Annotated[str, Form(max_length=64)],
    name: Annotated[str, Form(max_length=100)],
    step: Annotated[int, Form(ge=0, lt=2**31)],
) -> Response:
    """Deploy the model of a checkpoint under a name."""
    assert visitor.caller is not None
    body = parse_form(DeploymentCreate, name=name, model=model)
    create_deployment(session, body, visitor.caller.key_id)
    return RedirectResponse(f"/runs/{run_id}/checkpoints?step={step}", 303)


def _checkpoint_view(run_id: str, after: str | None, step: int | None) -> LiveView[CheckpointList]:
    def load(session: Session) -> CheckpointList:
        run = get_run(session, run_id)
        checkpoints, following = list_checkpoints(
            session, run_id, PageQuery(after=after, limit=PAGE_CHECKPOINTS)
        )
        chosen = choose_metric(checkpoints)
        selected = next((each for each in checkpoints if each.step == step), None)
        datasets: Sequence[Dataset] = []
        if selected is not None:
            datasets, _ = list_datasets(session, PageQuery(), with_preflights=False)
        return CheckpointList(
            run=run_summary_view(run),
            checkpoints=checkpoints,
            uses=list_uses(session, run, checkpoints),
            best=find_best(session, run_id, *chosen) if chosen is not None else None,
            metric=chosen[0] if chosen is not None else None,
            selected=selected,
            datasets=[(dataset.id, dataset.name) for dataset in datasets],
            after=after,
            next=following,
        )

    return LiveView(load, _render_checkpoints)


def _render_checkpoints(state: CheckpointList, visitor: Visitor) -> Parts:
    language = visitor.language
    rows = {
        f"row-{each.id}": render_macro(language, PARTS, "row", each, state, visitor)
        for each in state.checkpoints
    }
    parts = {
        "checkpoints-head": render_macro(language, PARTS, "head", state),
        "selected": render_macro(language, PARTS, "selected", state, visitor),
    }
    empty = render_macro(language, PARTS, "empty_row", state)
    return Parts(parts=parts, rows=rows, table="checkpoints", empty=empty)
