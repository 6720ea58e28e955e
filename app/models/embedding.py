"""Check of embedding models that this host can read, when a request deploys them.

The models of hub ids are checked by the worker that fetches them.
"""

from sqlmodel import Session

from app.http.errors import UnprocessableContent
from app.models.references import find_folder
from app.settings import get_settings
from app.tables import Model, ModelKind
from trainers.configs import DeploymentChoice, EngineTask
from trainers.configs.references import REGISTRY_PREFIX
from trainers.modeling.embedding.recipe import (
    EmbeddingModelUnsupported,
    check_engine,
    check_generates,
    read_recipe,
)
from trainers.modeling.model_files import ModelRole, is_adapter, read_model_files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError


class EmbeddingModelRefused(UnprocessableContent):
    """The model cannot be deployed with the task `embed`."""

    def __init__(
        self, field: str, message: str, hint: str | None, code: ErrorCode = ErrorCode.model_unsupported
    ) -> None:
        super().__init__(f"{field}: {message}", hint=hint, fields=[{"field": field, "message": message}])
        self.code = code


def check_embedding_model(session: Session, reference: str, choice: DeploymentChoice, field: str) -> None:
    """Raise EmbeddingModelRefused for an adapter, or a folder whose files the engine cannot follow.

    An embedding model with the task `generate` is refused, too.
    """
    if choice.task is not EngineTask.embed:
        _check_generates(reference, field)
        return
    row = session.get(Model, reference) if reference.startswith(REGISTRY_PREFIX) else None
    if row is not None and row.kind is ModelKind.adapter:
        raise refuse_adapter(field, reference)
    if (folder := find_folder(reference)) is None:
        return
    if is_adapter(folder):
        raise refuse_adapter(field, reference)
    try:
        # Its files are verified before they are read: a config may be a link to a file elsewhere.
        read_model_files(folder, ModelRole.base, get_settings().model_roots)
        check_engine(read_recipe(folder, choice.pooling), choice.engine)
    except ProgramError as error:
        raise EmbeddingModelRefused(field, error.message, error.hint, error.code) from error


def _check_generates(reference: str, field: str) -> None:
    folder = find_folder(reference)
    try:
        if folder is not None:
            check_generates(folder)
    except EmbeddingModelUnsupported as error:
        raise EmbeddingModelRefused(field, error.message, error.hint) from error


def refuse_adapter(field: str, reference: str) -> EmbeddingModelRefused:
    """Return the error for an adapter."""
    return EmbeddingModelRefused(
        field,
        f"{reference} is an adapter, which embeddings do not apply.",
        "Merge it into its base, and deploy the merged model.",
    )
