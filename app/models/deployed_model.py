"""Check that a model fits the task and the options of its deployment, when a request deploys it.

The models of hub ids are checked by the worker that fetches them.
"""

from pathlib import Path

from sqlmodel import Session

from app.http.errors import UnprocessableContent
from app.models.references import find_folder
from app.settings import get_settings
from app.tables import Model, ModelKind
from trainers.configs import DeploymentChoice, EngineKind, EngineTask
from trainers.configs.references import REGISTRY_PREFIX
from trainers.modeling.embedding.recipe import (
    EmbeddingModelUnsupported,
    check_engine,
    check_generates,
    read_recipe,
)
from trainers.modeling.model_config import ModelFileRefused, list_unpaddable_layers, read_object
from trainers.modeling.model_files import CONFIG, ModelRole, is_adapter, read_model_files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError


class DeployedModelRefused(UnprocessableContent):
    """The model cannot be deployed with this task or these options."""

    def __init__(
        self, field: str, message: str, hint: str | None, code: ErrorCode = ErrorCode.model_unsupported
    ) -> None:
        super().__init__(f"{field}: {message}", hint=hint, fields=[{"field": field, "message": message}])
        self.code = code


def check_deployed_model(session: Session, reference: str, choice: DeploymentChoice, field: str) -> None:
    """Check what this host can read of a model.

    Raises:
        DeployedModelRefused: An adapter for embeddings or without a slot, a folder whose files or layers the
            engine cannot follow, or an embedding model with the task `generate`.
    """
    row = session.get(Model, reference) if reference.startswith(REGISTRY_PREFIX) else None
    folder = find_folder(reference)
    if (row is not None and row.kind is ModelKind.adapter) or (folder is not None and is_adapter(folder)):
        check_adapter_slots(choice, reference, field)
    elif choice.task is not EngineTask.embed:
        _check_generates(folder, field)
    elif folder is not None:
        _check_embeds(folder, choice, field)
    if choice.task is not EngineTask.embed and choice.engine is EngineKind.hf:
        _check_layers(folder if row is None else find_folder(row.base), reference, field)


def check_adapter_slots(choice: DeploymentChoice, reference: str, field: str) -> None:
    """Raise DeployedModelRefused if the deployment of an adapter has the task `embed` or no slot for it."""
    if choice.task is EngineTask.embed:
        raise DeployedModelRefused(
            field,
            f"{reference} is an adapter, which embeddings do not apply.",
            "Merge it into its base, and deploy the merged model.",
        )
    if choice.options.max_adapters == 0:
        raise DeployedModelRefused(
            field,
            f"{reference} is an adapter, and options.max_adapters is 0.",
            "Leave options.max_adapters out, or merge the adapter into its base and deploy the merged model.",
        )


def _check_layers(base: Path | None, reference: str, field: str) -> None:
    """Raise DeployedModelRefused for a base with layers that the engine hf cannot batch."""
    if base is None or not (base / CONFIG).is_file():
        return
    try:
        # Its files are verified before they are read, as below.
        read_model_files(base, ModelRole.base, get_settings().model_roots)
        kinds = list_unpaddable_layers(read_object(base / CONFIG))
    except (ProgramError, ModelFileRefused, OSError):
        # The worker reports what is wrong with the files.
        return
    if kinds:
        raise DeployedModelRefused(
            field,
            f"{reference} has {', '.join(kinds)} layers, which the engine hf cannot batch.",
            "Set engine to vllm or sglang.",
        )


def _check_embeds(folder: Path, choice: DeploymentChoice, field: str) -> None:
    try:
        # Its files are verified before they are read: a config may be a link to a file elsewhere.
        read_model_files(folder, ModelRole.base, get_settings().model_roots)
        check_engine(read_recipe(folder, choice.pooling), choice.engine)
    except ProgramError as error:
        raise DeployedModelRefused(field, error.message, error.hint, error.code) from error


def _check_generates(folder: Path | None, field: str) -> None:
    try:
        if folder is not None:
            check_generates(folder)
    except EmbeddingModelUnsupported as error:
        raise DeployedModelRefused(field, error.message, error.hint) from error
