"""What a person may write for a model, and what it means on this service."""

import re
from collections.abc import Sequence
from pathlib import Path

from sqlmodel import Session

from app.http.errors import UnprocessableContent
from app.settings import get_settings
from app.tables import Model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve_model(session: Session, reference: str, field: str) -> str:
    """The registry id, the folder or the hub id that is meant; raises Invalid naming the field.

    A path must lie under an allowed root once `..` and links are followed. A bare name means a folder
    of that name under a root before it means a hub id.
    """
    roots = get_settings().model_roots
    if reference.startswith("model_"):
        return _registered(session, reference, field)
    if reference.startswith((".", "/")):
        return _allowed(Path(reference), field, roots)
    if (folder := _folder(reference, roots)) is not None:
        return folder
    if _HUB_ID.fullmatch(reference):
        return reference
    raise _invalid(
        field,
        f"{reference!r} is no folder under {_listed(roots)}, no hub id such as 'org/name', and no registry "
        "id 'model_…'.",
        "Put the model's folder there, or name its own place in TUNESMITH_MODEL_ROOTS.",
    )


def _registered(session: Session, reference: str, field: str) -> str:
    if session.get(Model, reference) is None:
        message = f"The registry has no model {reference!r}."
        raise _invalid(field, message, "GET /api/v1/models lists its models.")
    return reference


def _allowed(path: Path, field: str, roots: Sequence[Path]) -> str:
    followed = _follow(path)
    if followed is None or not _under_a_root(followed, roots):
        message = f"{path} does not lie in a folder from which models may be read: {_listed(roots)}."
        raise _invalid(field, message, "Whoever runs the service can allow more in TUNESMITH_MODEL_ROOTS.")
    return str(followed)


def _folder(reference: str, roots: Sequence[Path]) -> str | None:
    """The folder of that name under a root, if there is one."""
    for root in roots:
        followed = _follow(root / reference)
        if followed is not None and _under_a_root(followed, roots) and followed.is_dir():
            return str(followed)
    return None


def _follow(path: Path) -> Path | None:
    """The path without `..` and links; None for one that no file system holds, or a loop of links."""
    try:
        path.is_dir()
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _under_a_root(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) and path != root for root in roots)


def _listed(roots: Sequence[Path]) -> str:
    return ", ".join(map(str, roots))


def _invalid(field: str, message: str, hint: str) -> UnprocessableContent:
    return UnprocessableContent(
        f"{field}: {message}", hint=hint, fields=[{"field": field, "message": message}]
    )
