"""The models of runs and deployments on this host.

A model is a hub id, a registry id, or a folder under an allowed root; the form of its name decides which. The
result is an absolute folder of verified files, and no program resolves a name again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import col, select

from app.retention.host_files import MODEL_VIEWS
from app.settings import Settings
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.storage.opening import get_store
from app.tables import Model, ModelKind, Run
from trainers.configs import AdaptedModel, ImportConfig, ModelRef, StageOutput
from trainers.configs.references import (
    FolderModel,
    HubModel,
    ModelLocation,
    RegistryModel,
    parse_location,
)
from trainers.modeling.model_files import ModelRole, is_adapter, open_model, read_adapter_base
from trainers.runtime.errors import ProgramError
from workers.inputs.errors import (
    STORE_HINT,
    InputCorrupt,
    InputModelNotFound,
    InputRefused,
    InputUnreadable,
    LaunchError,
)
from workers.inputs.hub_download import HubDownloadFailed, download_model


@dataclass(frozen=True)
class ResolvedModel:
    """A model reference resolved to folders on this host."""

    base: str
    adapter: Path | None
    origin: str
    """The location of the base weights: a hub id with its commit, a folder, or a registry id."""
    model_id: str | None
    adapter_origin: str | None = None
    """The location of the adapter, likewise; None without one, and for a checkpoint's."""
    checkpoint_of: str | None = None
    """The training run of which it is a checkpoint."""
    checkpoint: int | None = None
    """The step of that checkpoint."""

    @property
    def reference(self) -> ModelRef:
        """The model as a program's config names it."""
        return AdaptedModel(base=self.base, adapter=str(self.adapter)) if self.adapter else self.base


def fetch_model(
    job_id: str | None,
    reference: ModelRef,
    settings: Settings,
    should_stop: Callable[[], bool] = lambda: False,
) -> ResolvedModel:
    """Resolve a model to verified folders on this host, and fetch missing files.

    Raises LaunchError, and LaunchStopped when `should_stop` returned True during a download.
    """
    location = locate_model(job_id, reference)
    if isinstance(location, RegistryModel):
        return _fetch_registered(location, settings, should_stop)
    try:
        return _open_location(location, settings, should_stop)
    except (ProgramError, HubDownloadFailed) as error:
        raise InputRefused(error) from error


def fetch_import(
    config: ImportConfig, settings: Settings, should_stop: Callable[[], bool] = lambda: False
) -> ResolvedModel:
    """Resolve the model to import, with its base if it is an adapter; raises as `fetch_model`."""
    location = locate_model(None, config.model)
    if isinstance(location, RegistryModel):
        raise InputModelNotFound(f"The model {location} is in the registry already.", "Use its id.")
    base = None if config.base is None else locate_model(None, config.base)
    try:
        return _open_location(location, settings, should_stop, base)
    except (ProgramError, HubDownloadFailed) as error:
        raise InputRefused(error) from error


def locate_model(job_id: str | None, reference: ModelRef) -> ModelLocation:
    """Return where a model of a job is, without fetching it; raises InputModelNotFound."""
    if isinstance(reference, StageOutput):
        return RegistryModel(_find_stage_model(job_id, reference.stage))
    assert isinstance(reference, str), "a job's config names no adapter by its folder"
    try:
        return parse_location(reference)
    except ValueError as error:
        raise InputModelNotFound(f"The model {error}.", "Name it in one of these forms.") from error


def _fetch_registered(
    location: RegistryModel, settings: Settings, should_stop: Callable[[], bool]
) -> ResolvedModel:
    with read_session() as session:
        model = session.get(Model, location.id)
    if model is None or model.deleted_at is not None:
        raise InputModelNotFound(
            f"The model {location} {'does not exist' if model is None else 'was deleted'}.",
            "List the models with GET /api/v1/models.",
        )
    folder = _fetch_artifact(model)
    try:
        if model.kind is ModelKind.base:
            opened = open_model(folder, ModelRole.base, [], find_views(settings))
            return ResolvedModel(str(opened), None, model.id, model.id)
        adapter = open_model(folder, ModelRole.adapter, [], find_views(settings))
    except ProgramError as error:
        raise InputRefused(error) from error
    base = fetch_model(None, model.base, settings, should_stop)
    return ResolvedModel(base.base, adapter, base.origin, model.id, model.id)


def _open_location(
    location: HubModel | FolderModel,
    settings: Settings,
    should_stop: Callable[[], bool],
    adapter_base: ModelLocation | None = None,
) -> ResolvedModel:
    """Return the model of a folder or of the hub.

    The base of an adapter is the one that is given, or that its config names, resolved like any other name.
    """
    folder, origin = _find_folder(location, settings, should_stop)
    roots, views = settings.model_roots, find_views(settings)
    if not is_adapter(folder):
        return ResolvedModel(str(open_model(folder, ModelRole.base, roots, views)), None, origin, None)
    adapter = open_model(folder, ModelRole.adapter, roots, views)
    base = adapter_base or _locate_adapter_base(location, folder)
    if isinstance(base, RegistryModel):
        registered = _fetch_registered(base, settings, should_stop)
        if registered.adapter is not None:
            raise InputModelNotFound(
                f"The base {base} of the adapter {location} is an adapter itself.",
                "Name the merged form of that adapter as the base.",
            )
        return ResolvedModel(registered.base, adapter, registered.origin, None, origin)
    base_folder, base_origin = _find_folder(base, settings, should_stop)
    opened = open_model(base_folder, ModelRole.base, roots, views)
    return ResolvedModel(str(opened), adapter, base_origin, None, origin)


def _find_folder(
    location: HubModel | FolderModel, settings: Settings, should_stop: Callable[[], bool]
) -> tuple[Path, str]:
    """Return the folder of a location on this host, and the location with its commit."""
    if isinstance(location, HubModel):
        snapshot = download_model(location, settings, should_stop)
        return snapshot.folder, str(HubModel(location.name, snapshot.commit))
    return check_folder(location.path, settings), str(location)


def _locate_adapter_base(location: ModelLocation, folder: Path) -> ModelLocation:
    """Return the base that an adapter names; an adapter of the hub may only name a model of the hub."""
    named = read_adapter_base(folder) or ""
    try:
        base = parse_location(named)
    except ValueError:
        base = None
    if isinstance(base, HubModel) or (base is not None and isinstance(location, FolderModel)):
        return base
    others = ", an absolute folder or a registry id" if isinstance(location, FolderModel) else ""
    raise InputModelNotFound(
        f"The adapter {location} names the base {named!r}, which is not a hub id{others}.",
        "Import the adapter with POST /api/v1/models, and name its base there; or correct "
        "base_model_name_or_path in its adapter_config.json.",
    )


def check_folder(path: Path, settings: Settings) -> Path:
    """Return the real path of a folder under a root that this host allows."""
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in settings.model_roots):
        raise InputModelNotFound(
            f"The model folder {path} is not under a root that this worker may read.",
            "Add its root to TUNESMITH_MODEL_ROOTS on the worker.",
        )
    if not real.is_dir():
        raise InputModelNotFound(
            f"The model folder {path} does not exist on this worker's host.",
            "Copy the model there, or name a hub id.",
        )
    return real


def check_links(folder: Path, name: str, roots: Sequence[Path], refusal: type[LaunchError]) -> None:
    """Raise the refusal if a file of a folder is a link out of the roots."""
    for path in folder.rglob("*"):
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in roots):
            raise refusal(
                f"The file {path.relative_to(folder)} of {name} is a link out of the roots that this worker "
                "may read.",
                "Copy the file in place of the link.",
            )


def find_views(settings: Settings) -> Path:
    """Return the folder of the links through which programs and engines see models."""
    return settings.data_dir / MODEL_VIEWS


def _find_stage_model(job_id: str | None, stage: str) -> str:
    """Return the id of the model that an earlier stage of the job has produced."""
    with read_session() as session:
        run = session.exec(select(Run).where(col(Run.job_id) == job_id, col(Run.name) == stage)).one()
    assert run.model_id is not None, f"{run.id} has succeeded and its stage produces a model"
    return run.model_id


def _fetch_artifact(model: Model) -> Path:
    try:
        return get_store().fetch_folder(model.artifact, model.sha256)
    except ArtifactCorrupt as error:
        raise InputCorrupt(f"The model {model.id} cannot be used. {error.message}", error.hint) from error
    except OSError as error:
        raise InputUnreadable(
            f"The model {model.id} cannot be read from the artifact store: {error}.", STORE_HINT
        ) from error
