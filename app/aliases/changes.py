"""The change of an alias's targets, which is also recorded as a version."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlmodel import Session, col

from app.storage.database import database_now
from app.tables import Alias, AliasVersion

Targets = list[dict[str, Any]]


def write_targets(
    session: Session,
    name: str,
    targets: Targets,
    *,
    changed_by: str | None,
    restored_version: int | None = None,
    guards: Sequence[ColumnElement[bool]] = (),
) -> int | None:
    """Change the targets of an existing alias, and return its new version; None if a guard does not hold.

    The name must be locked (`lock_name`).
    """
    updated = update(Alias).where(col(Alias.name) == name, *guards).returning(col(Alias.version))
    updated = updated.values(
        targets=targets,
        version=col(Alias.version) + 1,
        changed_by=changed_by,
        updated_at=database_now(),
    )
    version = session.scalar(updated.execution_options(synchronize_session=False))
    if version is not None:
        _record(session, name, version, targets, changed_by, restored_version)
    return version


def create_alias(
    session: Session,
    name: str,
    targets: Targets,
    *,
    changed_by: str | None,
    restored_version: int | None = None,
) -> int:
    """Create an alias, and return its version; one that is created again continues the numbers."""
    last = select(func.max(col(AliasVersion.version))).where(col(AliasVersion.alias) == name)
    version = (session.scalar(last) or 0) + 1
    session.add(Alias(name=name, version=version, targets=targets, changed_by=changed_by))
    _record(session, name, version, targets, changed_by, restored_version)
    return version


def find_version(session: Session, name: str, version: int) -> AliasVersion | None:
    """Return a version of an alias, or None."""
    return session.scalars(
        select(AliasVersion).where(col(AliasVersion.alias) == name, col(AliasVersion.version) == version)
    ).one_or_none()


def _record(
    session: Session,
    name: str,
    version: int,
    targets: Targets,
    changed_by: str | None,
    restored_version: int | None,
) -> None:
    session.add(
        AliasVersion(
            alias=name,
            version=version,
            targets=targets,
            changed_by=changed_by,
            restored_version=restored_version,
        )
    )
    session.flush()
