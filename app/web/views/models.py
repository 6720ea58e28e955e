"""The list of models, and the page of one model: its lineage, files, deployment and deletion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Form, Path, Query, Request, Response
from sqlmodel import Session

from app.deployments.schemas import DeploymentCreate
from app.deployments.service import create_deployment
from app.downloads.response import download_response
from app.http.paging import PageQuery
from app.models import files, lineage, service
from app.models.lineage import Descendants
from app.models.schemas import ModelFileView, ModelForm, ModelLineageView, ModelView, model_view
from app.storage.database import ReadSession, WriteSession, read_session
from app.storage.manifest import ArtifactCorrupt
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, show_changes, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.url_state import ListFilters
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "models/parts.jinja"

router = view_router()

ModelId = Annotated[str, Path(pattern=r"^model_[0-9a-z]{1,40}$")]


@dataclass(frozen=True)
class ModelFilters(ListFilters):
    """The filters of the list, all of which are in the URL."""

    name: str
    dataset: str
    after: str | None


@dataclass(frozen=True)
class ModelList:
    """The models of a page of the list."""

    models: Sequence[ModelView]
    next: str | None


@dataclass(frozen=True)
class ModelState:
    """A model with what it was made from, what was made of it, and a job that trains it further."""

    model: ModelLineageView
    made: Descendants
    next_spec: dict[str, Any]


def model_filters(
    name: Annotated[str, Query(max_length=200)] = "",
    dataset: Annotated[str, Query(max_length=64)] = "",
    after: Annotated[str | None, Query(pattern=r"^model_[0-9a-z]{26}$")] = None,
) -> ModelFilters:
    """Return the filters of a request; an empty field of the form is no filter."""
    return ModelFilters(name.strip(), dataset.strip(), after)


Filters = Annotated[ModelFilters, Depends(model_filters)]


@router.get("/models")
def list_models(
    request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters
) -> Response:
    """Show the models, newest first."""
    view = _list_view(filters)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "models/list.jinja", state=state, parts=parts, filters=filters)


@router.get("/models/stream")
def stream_models(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(filters), version)


@router.get("/models/{model_id}")
def show_model(request: Request, visitor: CurrentVisitor, model_id: ModelId) -> Response:
    """Show a model; no session is open while its manifest is read."""
    view = _model_view(model_id)
    with read_session() as session:
        state = view.load(session)
    listed: Sequence[ModelFileView] = ()
    error = None
    try:
        listed = files.list_files(model_id).items
    except ArtifactCorrupt as damaged:
        error = damaged.as_dict()
    parts = view.render(state, visitor)
    return render_page(request, "models/page.jinja", state=state, parts=parts, files=listed, error=error)


@router.get("/models/{model_id}/stream")
def stream_model(request: Request, model_id: ModelId, version: Version = "") -> Response:
    """Stream the parts of the model's page that change."""
    return stream_view(request, _model_view(model_id), version)


@router.get("/models/{model_id}/download")
def download_model(request: Request, model_id: ModelId, form: ModelForm | None = None) -> Response:
    """Download all files as a tar archive."""
    return download_response(request.headers, files.find_archive(model_id, form))


@router.get("/models/{model_id}/files/{path:path}")
def download_file(
    request: Request, model_id: ModelId, path: Annotated[str, Path(max_length=1024)]
) -> Response:
    """Download a file."""
    return download_response(request.headers, files.find_file(model_id, path))


@router.post("/models/{model_id}/deploy")
def deploy_model(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    model_id: ModelId,
    name: Annotated[str, Form(max_length=100)],
) -> Response:
    """Deploy a model under a name."""
    assert visitor.caller is not None
    body = parse_form(DeploymentCreate, name=name, model=model_id)
    create_deployment(session, body, visitor.caller.key_id)
    return show_changes(request, session, visitor, _model_view(model_id), f"/models/{model_id}")


@router.post("/models/{model_id}/delete")
def delete_model(request: Request, session: WriteSession, model_id: ModelId) -> Response:
    """Delete a model that nothing uses, and return to the list."""
    service.delete_model(session, model_id)
    return go_to(request, "/models")


def _list_view(filters: ModelFilters) -> LiveView[ModelList]:
    def load(session: Session) -> ModelList:
        query = PageQuery(after=filters.after)
        models, after = service.list_models(session, query, filters.name or None, filters.dataset or None)
        return ModelList([model_view(model) for model in models], after)

    def render(state: ModelList, visitor: Visitor) -> Parts:
        rows = {
            f"row-{model.id}": render_macro(visitor.language, PARTS, "row", model) for model in state.models
        }
        return Parts(
            rows=rows, table="models", empty=render_macro(visitor.language, PARTS, "empty_row", filters)
        )

    return LiveView(load, render)


def _model_view(model_id: str) -> LiveView[ModelState]:
    def load(session: Session) -> ModelState:
        model = service.get_model(session, model_id)
        return ModelState(
            model=service.view_model(session, model),
            made=lineage.list_descendants(session, model_id),
            next_spec=lineage.make_next_spec(session, model),
        )

    return LiveView(load, _render_model)


def _render_model(state: ModelState, visitor: Visitor) -> Parts:
    names = {"model-head": "head", "model-lineage": "lineage"}
    parts = {id: render_macro(visitor.language, PARTS, name, state, visitor) for id, name in names.items()}
    return Parts(parts=parts)
