"""Resolution of names in requests: models of the registry or hub, and folders under an allowed root."""

from collections.abc import Sequence
from pathlib import Path

from sqlmodel import Session, col, select

from app.http.errors import UnprocessableContent
from app.models.starter import STARTER, read_starter_progress
from app.settings import get_settings
from app.tables import Model
from trainers.configs.references import (
    REGISTRY_PREFIX,
    FolderModel,
    ModelLocation,
    RegistryModel,
    parse_location,
)


def resolve_model(session: Session, reference: str, field: str) -> ModelLocation:
    """Return the location of a model; raises UnprocessableContent naming the field.

    A path must be under an allowed root once `..` and links are resolved. A folder under a root has
    precedence over a hub id of the same name.
    """
    roots = get_settings().model_roots
    if reference.startswith(REGISTRY_PREFIX):
        return _registered(session, reference, field)
    if reference.startswith((".", "/")):
        return FolderModel(_allowed_path(Path(reference), field, roots))
    if (folder := _find_folder(reference, roots)) is not None:
        return FolderModel(folder)
    try:
        return parse_location(reference)
    except ValueError as error:
        raise _unknown(field, reference, roots) from error


def check_kernel_folder(folder: str, field: str) -> None:
    """Raise UnprocessableContent unless the operator allows the code of the folder to run in training."""
    roots = get_settings().kernel_roots
    resolved = _resolve_path(Path(folder)) if folder.startswith("/") else None
    if resolved is None or not _is_under_root(resolved, roots):
        allowed = _join(roots) or "none"
        message = f"{folder} is not an absolute path under a folder of kernels; allowed: {allowed}."
        raise _invalid(field, message, "The operator can allow folders in TUNESMITH_KERNEL_ROOTS.")


def _unknown(field: str, reference: str, roots: Sequence[Path]) -> UnprocessableContent:
    if reference == STARTER and (progress := read_starter_progress()) is not None:
        message = f"The example model {STARTER!r} is still being trained on this machine: {progress}."
        hint = "Wait, and send the request again. `tunesmith status` shows the progress."
        return _invalid(field, message, hint)
    message = (
        f"{reference!r} is not a folder under {_join(roots)}, a hub id such as 'org/name', or a registry id "
        "'model_…'."
    )
    hint = "Put the model's folder there, or add its parent folder to TUNESMITH_MODEL_ROOTS."
    if reference == STARTER:
        hint = "Only a service with examples has this model: `make run`, or `tunesmith up --with-examples`."
    return _invalid(field, message, hint)


def find_folder(reference: str) -> Path | None:
    """Return the existing folder under an allowed root that a reference names, or None."""
    roots = get_settings().model_roots
    if reference.startswith((".", "/")):
        resolved = _resolve_path(Path(reference))
        allowed = resolved is not None and _is_under_root(resolved, roots) and resolved.is_dir()
        return resolved if allowed else None
    return _find_folder(reference, roots)


def _registered(session: Session, reference: str, field: str) -> RegistryModel:
    # The lock makes a request that deletes the model wait until this use of it is visible.
    stored = select(Model.id).where(col(Model.id) == reference, col(Model.deleted_at).is_(None))
    if session.exec(stored.with_for_update(read=True)).first() is None:
        message = f"The registry has no model {reference!r}."
        raise _invalid(field, message, "List its models with GET /api/v1/models.")
    return RegistryModel(reference)


def _allowed_path(path: Path, field: str, roots: Sequence[Path]) -> Path:
    resolved = _resolve_path(path)
    if resolved is None or not _is_under_root(resolved, roots):
        message = f"{path} is not under a folder that models may be read from: {_join(roots)}."
        raise _invalid(field, message, "The operator can allow more folders in TUNESMITH_MODEL_ROOTS.")
    return resolved


def _find_folder(reference: str, roots: Sequence[Path]) -> Path | None:
    """Return the folder of that name under a root, or None."""
    for root in roots:
        resolved = _resolve_path(root / reference)
        if resolved is not None and _is_under_root(resolved, roots) and resolved.is_dir():
            return resolved
    return None


def _resolve_path(path: Path) -> Path | None:
    """Resolve `..` and links; return None for a path that no file system accepts, or a loop of links."""
    try:
        path.is_dir()
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _is_under_root(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) and path != root for root in roots)


def _join(roots: Sequence[Path]) -> str:
    return ", ".join(map(str, roots))


def _invalid(field: str, message: str, hint: str) -> UnprocessableContent:
    return UnprocessableContent(
        f"{field}: {message}", hint=hint, fields=[{"field": field, "message": message}]
    )
