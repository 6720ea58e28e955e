"""The pages of one dataset: faults, statistics, tokens with loss, uses, and its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Form, Path, Query, Request, Response
from sqlmodel import Session

from app.datasets import previews, service
from app.datasets.fault_table import render_fault_table
from app.datasets.previews import DatasetPreview, load_preview
from app.datasets.schemas import DatasetRowView, DatasetView, PreviewCreate, summary_view
from app.downloads.response import download_response
from app.http.paging import PageQuery
from app.jobs.listing import list_jobs_of_input
from app.jobs.schemas import JobSummaryView
from app.models.service import list_models
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession, read_session
from app.storage.manifest import ArtifactCorrupt
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, show_changes, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.views.datasets.upload import upload_options
from app.web.visitor import CurrentVisitor, Visitor, view_router
from trainers.configs.training import ChatTemplateName

PARTS = "datasets/parts.jinja"
MAX_USES = 20
ROWS_PER_PAGE = 20

router = view_router()

DatasetId = Annotated[str, Path(pattern=r"^dataset_[0-9a-z]{1,40}$")]


@dataclass(frozen=True)
class DatasetState:
    """A dataset with its newest preview, and the models and jobs that used it."""

    dataset: DatasetView
    preview: DatasetPreview
    models: Sequence[tuple[str, str]]
    jobs: Sequence[JobSummaryView]


@router.get("/datasets/{dataset_id}")
def show_dataset(
    request: Request,
    session: ReadSession,
    visitor: CurrentVisitor,
    dataset_id: DatasetId,
    existing: Annotated[bool, Query()] = False,
) -> Response:
    """Show a dataset; `existing` after an upload of content that was stored before."""
    view = _dataset_view(dataset_id)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(
        request,
        "datasets/page.jinja",
        state=state,
        parts=parts,
        existing=existing,
        upload=upload_options(),
        templates=list(ChatTemplateName),
    )


@router.get("/datasets/{dataset_id}/stream")
def stream_dataset(request: Request, dataset_id: DatasetId, version: Version = "") -> Response:
    """Stream the parts of the dataset's page that change."""
    return stream_view(request, _dataset_view(dataset_id), version)


@router.get("/datasets/{dataset_id}/rows")
def show_rows(
    request: Request,
    visitor: CurrentVisitor,
    dataset_id: DatasetId,
    after: Annotated[int, Query(ge=0, le=2**40)] = 0,
) -> Response:
    """Show rows as they are stored and as conversations; no session is open while the file is read."""
    with read_session() as session:
        dataset = summary_view(service.get_dataset(session, dataset_id))
    rows: list[DatasetRowView] = []
    following, error = None, None
    try:
        rows, following = service.list_rows(dataset_id, after, ROWS_PER_PAGE)
    except ArtifactCorrupt as damaged:
        error = damaged.as_dict()
    return render_page(
        request,
        "datasets/rows.jinja",
        dataset=dataset,
        rows=rows,
        after=after,
        following=following,
        before=max(0, after - ROWS_PER_PAGE),
        error=error,
    )


@router.get("/datasets/{dataset_id}/content")
def download_content(request: Request, dataset_id: DatasetId) -> Response:
    """Download the file."""
    return download_response(request.headers, service.find_content(dataset_id))


@router.get("/datasets/{dataset_id}/faults.csv")
def download_faults(session: ReadSession, dataset_id: DatasetId) -> Response:
    """Download the faults and warnings that the report lists."""
    report = service.view_dataset(session, service.get_dataset(session, dataset_id)).report
    headers = {"Content-Disposition": f'attachment; filename="{dataset_id}-faults.csv"'}
    return Response(render_fault_table(report), media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/datasets/{dataset_id}/previews")
def create_preview(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    dataset_id: DatasetId,
    model: Annotated[str, Form()] = "",
    template: Annotated[str, Form()] = "",
    rows: Annotated[int, Form()] = 5,
) -> Response:
    """Start a run that renders the first rows with a model's template."""
    assert visitor.caller is not None
    body = parse_form(PreviewCreate, model=model.strip(), template=template or None, rows=rows)
    previews.create_preview(session, get_settings(), dataset_id, body, visitor.caller.key_id)
    return show_changes(
        request, session, visitor, _dataset_view(dataset_id), f"/datasets/{dataset_id}#tokens"
    )


@router.post("/datasets/{dataset_id}/delete")
def delete_dataset(request: Request, session: WriteSession, dataset_id: DatasetId) -> Response:
    """Delete a dataset that no unfinished job uses, and return to the list."""
    service.delete_dataset(session, dataset_id)
    return go_to(request, "/datasets")


def _dataset_view(dataset_id: str) -> LiveView[DatasetState]:
    return LiveView(lambda session: _load(session, dataset_id), _render)


def _load(session: Session, dataset_id: str) -> DatasetState:
    dataset = service.view_dataset(session, service.get_dataset(session, dataset_id))
    models, _ = list_models(session, PageQuery(limit=MAX_USES), None, dataset_id)
    return DatasetState(
        dataset=dataset,
        preview=load_preview(session, dataset_id),
        models=[(model.id, model.name) for model in models],
        jobs=list_jobs_of_input(session, dataset_id, MAX_USES),
    )


def _render(state: DatasetState, visitor: Visitor) -> Parts:
    language = visitor.language
    return Parts(
        parts={
            "dataset-head": render_macro(language, PARTS, "head", state, visitor),
            "dataset-tokens": render_macro(language, PARTS, "tokens", state.preview),
            "dataset-uses": render_macro(language, PARTS, "uses", state),
        }
    )
