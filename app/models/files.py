"""The files of a model: their list, single files, and all of them as a tar archive.

Only names in the model's manifest are read. Its bytes must have the hash in the model's row.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from app.downloads.response import Download
from app.downloads.stored_files import Chunks, read_stored
from app.downloads.tar_stream import TarEntry, stream_tar, tar_size
from app.http.errors import NotFound
from app.models.schemas import ModelFilesView, ModelFileView, ModelForm
from app.models.service import get_model
from app.storage.database import read_session
from app.storage.manifest import MANIFEST, ArtifactCorrupt
from app.storage.opening import get_store
from app.tables import Model, ModelKind, Run
from trainers.configs import StageKind
from trainers.runtime.error_codes import ErrorCode

TAR = "application/x-tar"
FILE = "application/octet-stream"


class ModelFormMissing(NotFound):
    """The model does not exist in the requested form."""

    code = ErrorCode.model_form_missing


class ModelFileNotFound(NotFound):
    """The model has no file of this name."""

    code = ErrorCode.file_not_published


def list_files(model_id: str) -> ModelFilesView:
    """Return the files of a model; raises ModelNotFound or ArtifactCorrupt."""
    files = _read_manifest(_load(model_id))
    return ModelFilesView(items=[ModelFileView.model_validate(file) for file in files])


def find_file(model_id: str, path: str) -> Download:
    """Return a file of a model to send; raises ModelNotFound, ModelFileNotFound or ArtifactCorrupt."""
    model = _load(model_id)
    file = next((file for file in _read_manifest(model) if file["path"] == path), None)
    if file is None:
        raise ModelFileNotFound(
            f"The model {model_id} has no file {path!r}.",
            hint=f"GET /api/v1/models/{model_id}/files lists its files.",
        )
    key, sha256 = f"{model.artifact}/{path}", file["sha256"]
    return Download(
        filename=path.rpartition("/")[2],
        media_type=FILE,
        size_bytes=file["size_bytes"],
        etag=f'"{sha256}"',
        open=lambda part: read_stored(key, sha256, part),
    )


def find_archive(model_id: str, form: ModelForm | None) -> Download:
    """Return the archive of a model, or of its merged form; raises ModelFormMissing and as `list_files`."""
    model = _load(model_id)
    model = model if form is None else _find_form(model, form)
    manifest = {
        "path": MANIFEST,
        "size_bytes": get_store().size_of(f"{model.artifact}/{MANIFEST}"),
        "sha256": model.sha256,
    }
    files = [*_read_manifest(model), manifest]
    entries = [
        TarEntry(f"{model.id}/{file['path']}", file["size_bytes"], _reader(model, file)) for file in files
    ]
    return Download(
        filename=f"{model.id}.tar",
        media_type=TAR,
        size_bytes=tar_size(entries),
        etag=f'"tar-{model.sha256}"',
        open=lambda part: stream_tar(entries),
        accepts_ranges=False,
    )


def _load(model_id: str) -> Model:
    """Return the model, with the session closed again: sending a file must not keep one open."""
    with read_session() as session:
        return get_model(session, model_id)


def _find_form(model: Model, form: ModelForm) -> Model:
    """Return the model itself, or the merged weights that a stage has made of an adapter."""
    if (model.kind is ModelKind.adapter) == (form is ModelForm.adapter):
        return model
    if form is ModelForm.adapter:
        raise ModelFormMissing(
            f"The model {model.id} has whole weights and no adapter.",
            hint="Leave `form` out, or use `form=merged`.",
        )
    merging = [kind for kind in StageKind if kind.stage.merges]
    statement = (
        select(Model)
        .join(Run, col(Run.id) == col(Model.run_id))
        .where(col(Model.parent_id) == model.id, col(Model.deleted_at).is_(None), col(Run.stage).in_(merging))
        .order_by(col(Model.id).desc())
        .limit(1)
    )
    with read_session() as session:
        merged = session.scalars(statement).first()
    if merged is None:
        raise ModelFormMissing(
            f"The adapter {model.id} has not been merged into its base.",
            hint='POST /api/v1/jobs with {"name": "merge", "stages": [{"stage": "merge", "model": '
            f'"{model.id}"}}]}} merges it; then send this request again.',
        )
    return merged


def _read_manifest(model: Model) -> list[dict[str, Any]]:
    try:
        return get_store().read_manifest(model.artifact, model.sha256)
    except FileNotFoundError as error:
        raise ArtifactCorrupt(model.artifact, f"{MANIFEST} is missing") from error


def _reader(model: Model, file: dict[str, Any]) -> Callable[[], Chunks]:
    return lambda: read_stored(f"{model.artifact}/{file['path']}", file["sha256"])
