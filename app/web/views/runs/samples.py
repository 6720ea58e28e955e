"""The completions of a model in training, with their rewards: the newest steps first, live."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Path, Query, Request, Response
from sqlmodel import Session

from app.runs.curves.samples import SampledStepView, list_samples
from app.runs.schemas import RunSummaryView, run_summary_view
from app.runs.service import get_run
from app.storage.database import ReadSession
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import render_macro, render_page
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "samples/parts.jinja"
STEPS_PER_PAGE = 10

router = view_router()

RunId = Annotated[str, Path(pattern=r"^run_[0-9a-z]{1,40}$")]
Before = Annotated[int | None, Query(ge=1, lt=2**31)]


@dataclass(frozen=True)
class SampleList:
    """The samples of a page of steps."""

    run: RunSummaryView
    steps: Sequence[SampledStepView]
    before: int | None
    next: int | None
    has_file: bool


@router.get("/runs/{run_id}/samples")
def show_samples(
    request: Request, session: ReadSession, visitor: CurrentVisitor, run_id: RunId, before: Before = None
) -> Response:
    """Show what the model has answered at the steps of its training, newest first."""
    view = _sample_view(run_id, before)
    state = view.load(session)
    return render_page(request, "samples/page.jinja", state=state, parts=view.render(state, visitor))


@router.get("/runs/{run_id}/samples/stream")
def stream_samples(request: Request, run_id: RunId, before: Before = None, version: Version = "") -> Response:
    """Stream the steps that are added."""
    return stream_view(request, _sample_view(run_id, before), version)


def _sample_view(run_id: str, before: int | None) -> LiveView[SampleList]:
    def load(session: Session) -> SampleList:
        run = get_run(session, run_id)
        steps, following = list_samples(session, run_id, before, STEPS_PER_PAGE)
        return SampleList(run_summary_view(run), steps, before, following, run.log_artifact is not None)

    def render(state: SampleList, visitor: Visitor) -> Parts:
        rows = {
            f"samples-{each.seq}": render_macro(visitor.language, PARTS, "sampled_step", each)
            for each in state.steps
        }
        parts = {"samples-head": render_macro(visitor.language, PARTS, "head", state)}
        empty = render_macro(visitor.language, PARTS, "empty", state)
        return Parts(parts=parts, rows=rows, table="samples", empty=empty)

    return LiveView(load, render)
