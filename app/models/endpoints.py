"""Models over HTTP."""

import sys
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.datasets.upload import receive_upload, upload_folder
from app.downloads.response import download_response, download_responses
from app.http.auth import CallerDependency
from app.http.paging import Page, Paging
from app.jobs import service as jobs
from app.jobs.schemas import JobView
from app.models import files, imports, service, uploads
from app.models.schemas import (
    ModelFilesView,
    ModelForm,
    ModelImport,
    ModelLineageView,
    ModelView,
    model_view,
)
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/models", tags=["models"])

ModelId = Annotated[str, Path(description="Id of the model, `model_…`.")]


@router.get("")
def list_models(
    session: ReadSession,
    paging: Paging,
    name: Annotated[str | None, Query(description="Return only models with exactly this name.")] = None,
    dataset_id: Annotated[
        str | None, Query(description="Return only models trained on the dataset with this id.")
    ] = None,
) -> Page[ModelView]:
    """List models, newest first."""
    models, after = service.list_models(session, paging, name, dataset_id)
    return Page(items=[model_view(model) for model in models], next=after)


@router.post("", status_code=202)
def import_model(session: WriteSession, caller: CallerDependency, body: ModelImport) -> JobView:
    """Register an adapter or whole weights from a folder or the hub; the job's run has the `model_id`.

    A worker downloads the model with its own token, verifies its files, and compares an adapter with its
    base. Weights must be safetensors. POST /api/v1/models/uploads registers files that you send.
    """
    job = imports.create_import(session, get_settings(), body, caller.key_id)
    return jobs.view_job(session, get_settings(), job)


# The size of an upload has a setting, which `receive_upload` checks.
@router.post("/uploads", status_code=201, openapi_extra=uploads.FORM, max_body_size=sys.maxsize)
async def upload_model(request: Request) -> ModelView:
    """Register the files of a PEFT adapter or of whole weights that you send.

    Send each file of the folder as a form field `file`, or one uncompressed tar archive, such as GET
    /api/v1/models/{id}/download sends it. Weights must be safetensors; files that no loader needs are left
    out.
    """
    settings = get_settings()
    with upload_folder(settings.data_dir / "uploads") as folder:
        upload = await receive_upload(request, folder, settings.max_upload_bytes, uploads.MAX_PARTS)
        model = await run_in_threadpool(uploads.import_upload, upload, folder)
    return model_view(model)


@router.get("/{model_id}")
def get_model(model_id: ModelId, session: ReadSession) -> ModelLineageView:
    """Return a model with its lineage, and with what uses it.

    The lineage is the run, the dataset and the model that it was produced from.
    """
    return service.view_model(session, service.get_model(session, model_id))


@router.delete("/{model_id}", status_code=204)
def delete_model(model_id: ModelId, session: WriteSession) -> None:
    """Delete a model that no unfinished job, live deployment or other model uses.

    Finished jobs keep its id. The files disappear with the next collection. Deleting it again returns 404.
    """
    service.delete_model(session, model_id)


@router.get("/{model_id}/files")
def list_model_files(model_id: ModelId) -> ModelFilesView:
    """List the files of a model, with their hashes."""
    return files.list_files(model_id)


@router.get(
    "/{model_id}/files/{path:path}",
    responses=download_responses(files.FILE, "The file."),
    response_class=Response,
)
def download_model_file(
    request: Request,
    model_id: ModelId,
    path: Annotated[str, Path(max_length=1024, description="Name of the file, as the list of files has it.")],
) -> Response:
    """Download a file of a model; `Range` continues a download that was interrupted."""
    return download_response(request.headers, files.find_file(model_id, path))


@router.get(
    "/{model_id}/download",
    responses=download_responses(files.TAR, "The archive, with the folder `model_…`."),
    response_class=Response,
)
def download_model(
    request: Request,
    model_id: ModelId,
    form: Annotated[
        ModelForm | None,
        Query(
            description="`merged` sends the whole weights that a merge stage has made of an adapter. By "
            "default, an adapter is sent as an adapter."
        ),
    ] = None,
) -> Response:
    """Download all files of a model as a tar archive, with the manifest of their hashes.

    The archive has no ranges; to continue an interrupted download, send requests for the single files.
    """
    return download_response(request.headers, files.find_archive(model_id, form))
