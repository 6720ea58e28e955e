"""The preflight of a draft: started from the form, and shown live below its plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Path, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlmodel import Session

from app.jobs import service
from app.jobs.preflight import create_preflight
from app.jobs.schemas import JobCreate, JobView, PreflightOptions
from app.settings import get_settings
from app.storage.database import read_session, transaction
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import is_htmx, render_macro, render_partial
from app.web.visitor import Visitor, view_router

PARTS = "new_job/parts.jinja"

router = view_router()

JobId = Annotated[str, Path(pattern=r"^job_[0-9a-z]{1,40}$")]


@dataclass(frozen=True)
class PreflightState:
    """The job that checks the stages of a draft."""

    job: JobView


def load(session: Session, job_id: str) -> PreflightState:
    """Return the state of a preflight; raises JobNotFound."""
    return PreflightState(service.view_job(session, get_settings(), service.get_job(session, job_id)))


def render(state: PreflightState, visitor: Visitor) -> Parts:
    """Return the part of the page with the findings."""
    return Parts(parts={"preflight": render_macro(visitor.language, PARTS, "preflight", state.job)})


@router.get("/jobs/new/preflight/{job_id}/stream")
def stream_preflight(request: Request, job_id: JobId, version: Version = "") -> Response:
    """Stream the findings as the runs report them."""
    return stream_view(request, LiveView(lambda session: load(session, job_id), render), version)


def start(request: Request, visitor: Visitor, spec: JobCreate, inputs: Mapping[str, list[str]]) -> Response:
    """Queue the preflight of a spec; return the part that shows it, whose job is then in the URL."""
    assert visitor.caller is not None
    options = _parse_options(inputs)
    with transaction() as session:
        job, _ = create_preflight(session, get_settings(), spec, options, visitor.caller.key_id)
    page = f"/jobs/new?preflight={job.id}"
    if not is_htmx(request):
        return RedirectResponse(page, 303)
    with read_session() as session:
        parts = render(load(session, job.id), visitor)
    live = render_macro(visitor.language, PARTS, "live", job.id, parts.version())
    content = render_partial("live", live, "outerHTML") + parts.render_changes(None)
    return HTMLResponse(content, headers={"HX-Replace-Url": page})


def _parse_options(inputs: Mapping[str, list[str]]) -> PreflightOptions:
    given = {name: inputs.get(name, [""])[0].strip() for name in PreflightOptions.model_fields}
    return parse_form(PreflightOptions, **{name: value for name, value in given.items() if value})
