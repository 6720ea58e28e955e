"""Aliases: moved in one step, rolled back, and never without a record of where they led before."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import Session, col

from app.aliases.schemas import AliasTargetView, AliasUpdate, AliasView
from app.aliases.targets import find_name_holders, list_all_aliases
from app.deployments.lifecycle import LIVE
from app.http.errors import Conflict, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.storage.database import database_now, lock_name
from app.tables import Alias, AliasVersion, Deployment
from trainers.runtime.error_codes import ErrorCode


class AliasNotFound(NotFound):
    """No alias has this name."""

    code = ErrorCode.alias_not_found


class NameIsDeployment(Conflict):
    """A live deployment has the name that an alias is to have."""

    code = ErrorCode.name_is_deployment


class TargetNotReady(Conflict):
    """An alias is to lead to a deployment that cannot answer."""

    code = ErrorCode.target_not_ready


class NothingToRestore(Conflict):
    """The history of an alias has no such version."""

    code = ErrorCode.nothing_to_restore


def move(session: Session, name: str, body: AliasUpdate) -> AliasView:
    """Lead an alias to these targets, at once; raises NameIsDeployment and TargetNotReady."""
    return _move(session, name, [target.model_dump() for target in body.targets], None)


def rollback(session: Session, name: str, version: int | None) -> AliasView:
    """Lead an alias where it led before; called again, further back. Raises NothingToRestore."""
    alias = _find(session, name)
    restored = version if version is not None else _before(session, alias)
    found = _version(session, name, restored)
    if found is None:
        raise NothingToRestore(
            f"The alias {name!r} has no version {restored} to go back to.",
            hint=f"GET /api/v1/aliases/{name}/history lists where it led.",
        )
    return _move(session, name, found.targets, restored)


def get(session: Session, name: str) -> AliasView:
    """One alias; raises AliasNotFound."""
    return _shown(session, [_find(session, name)])[0]


def listed(session: Session) -> list[AliasView]:
    """All aliases by name."""
    return _shown(session, list_all_aliases(session))


def history(session: Session, name: str, paging: PageQuery) -> tuple[Sequence[AliasVersion], str | None]:
    """Where an alias led, from new to old, also after it was deleted."""
    statement = select(AliasVersion).where(col(AliasVersion.alias) == name)
    return paginate_newest_first(session, statement, col(AliasVersion.id), paging)


def delete(session: Session, name: str) -> None:
    """Remove an alias; its history stays. Raises AliasNotFound."""
    session.delete(_find(session, name))


def _move(
    session: Session, name: str, targets: list[dict[str, Any]], restored_version: int | None
) -> AliasView:
    lock_name(session, name)
    _require_free(session, name)
    _require_ready(session, name, targets)
    moved = update(Alias).where(col(Alias.name) == name).returning(col(Alias.version))
    moved = moved.values(targets=targets, version=col(Alias.version) + 1, updated_at=database_now())
    version = session.scalar(moved.execution_options(synchronize_session=False))
    if version is None:
        version = _last_version(session, name) + 1
        session.add(Alias(name=name, version=version, targets=targets))
    session.add(AliasVersion(alias=name, version=version, targets=targets, restored_version=restored_version))
    session.flush()
    session.expire_all()
    return get(session, name)


def _require_free(session: Session, name: str) -> None:
    live = select(col(Deployment.id)).where(col(Deployment.name) == name, col(Deployment.status).in_(LIVE))
    if (deployment_id := session.scalars(live).first()) is not None:
        raise NameIsDeployment(
            f"{name!r} is the name of the deployment {deployment_id}, so no alias can have it.",
            hint=f"Choose another name, or stop it: POST /api/v1/deployments/{deployment_id}/stop.",
        )


def _require_ready(session: Session, name: str, targets: Sequence[dict[str, Any]]) -> None:
    names = [target["deployment"] for target in targets]
    there = find_name_holders(session, names)
    missing = [name for name in names if name not in there]
    if missing:
        raise TargetNotReady(
            f"The alias {name!r} cannot lead to {missing[0]!r}: no such deployment is ready or asleep.",
            hint="Deploy it and wait until it is ready: GET /api/v1/deployments?name=" + missing[0],
            fields=[{"field": "targets", "message": f"{missing[0]!r} is not ready"}],
        )


def _before(session: Session, alias: Alias) -> int:
    """The version before the one that the alias has now, which may itself have been restored."""
    now = _version(session, alias.name, alias.version)
    assert now is not None, "every move is recorded"
    return (now.restored_version or now.version) - 1


def _version(session: Session, name: str, version: int) -> AliasVersion | None:
    return session.scalars(
        select(AliasVersion).where(col(AliasVersion.alias) == name, col(AliasVersion.version) == version)
    ).one_or_none()


def _last_version(session: Session, name: str) -> int:
    last = select(func.max(col(AliasVersion.version))).where(col(AliasVersion.alias) == name)
    return session.scalar(last) or 0


def _find(session: Session, name: str) -> Alias:
    alias = session.get(Alias, name)
    if alias is None:
        raise AliasNotFound(
            f"There is no alias {name!r}.",
            hint=f"List them with GET /api/v1/aliases, or make it with PUT /api/v1/aliases/{name}.",
        )
    return alias


def _shown(session: Session, aliases: Sequence[Alias]) -> list[AliasView]:
    there = find_name_holders(session)
    return [
        AliasView(
            **alias.model_dump(exclude={"targets"}),
            targets=[_target(target, there.get(target["deployment"])) for target in alias.targets],
        )
        for alias in aliases
    ]


def _target(target: dict[str, Any], holder: Deployment | None) -> AliasTargetView:
    return AliasTargetView(
        **target,
        deployment_id=holder.id if holder else None,
        status=holder.status if holder else None,
    )
