"""Aliases, each changed in one transaction that also records the change as a version."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.aliases.changes import create_alias, find_version, write_targets
from app.aliases.promotions import list_others, shift_targets
from app.aliases.schemas import MAX_TARGETS, AliasTargetView, AliasUpdate, AliasView
from app.aliases.targets import find_name_holders
from app.deployments.lifecycle import LIVE
from app.http.errors import Conflict, NotFound, field_error
from app.http.paging import PageQuery, paginate_newest_first
from app.keys.limits import check_names
from app.storage.database import lock_name
from app.tables import Alias, AliasVersion, Deployment
from trainers.runtime.error_codes import ErrorCode


def update_alias(session: Session, name: str, body: AliasUpdate, changed_by: str | None) -> Alias:
    """Create an alias or change its targets; raise NameIsDeployment or TargetNotReady."""
    return _set_targets(session, name, [target.model_dump() for target in body.targets], changed_by)


def give_share(session: Session, name: str, deployment: str, share: float, changed_by: str | None) -> Alias:
    """Give a deployment a share of an alias's requests; the other targets keep their proportions.

    Raises AliasNotFound, UnprocessableContent, and the errors of `update_alias`.
    """
    # The present shares are part of the new ones.
    lock_name(session, name)
    alias = get_alias(session, name)
    if not list_others(alias.targets, deployment) and share < 1:
        raise field_error(
            "deployment",
            f"The alias {name!r} routes to {deployment!r} alone: give a share to another deployment.",
        )
    targets = shift_targets(alias.targets, deployment, share)
    if len(targets) > MAX_TARGETS:
        raise field_error(
            "deployment",
            f"The alias {name!r} has {MAX_TARGETS} deployments, and none can be added: give one of them all "
            f"requests, or set all shares with PUT /api/v1/aliases/{name}.",
        )
    return _set_targets(session, name, targets, changed_by)


class NothingToRestore(Conflict):
    """The alias has no such version."""

    code = ErrorCode.nothing_to_restore


def roll_back_alias(session: Session, name: str, version: int | None, changed_by: str | None) -> Alias:
    """Restore the targets of a version, by default the previous one; repeated calls go further back.

    Raises:
        AliasNotFound: There is no such alias.
        NothingToRestore: The alias has no such version.
        NameIsDeployment, TargetNotReady: The targets cannot be restored now.
    """
    lock_name(session, name)
    alias = get_alias(session, name)
    number = version if version is not None else find_previous_version(session, alias)
    found = find_version(session, name, number)
    if found is None:
        raise NothingToRestore(
            f"The alias {name!r} has no version {number} to restore.",
            hint=f"List its versions: GET /api/v1/aliases/{name}/history.",
        )
    return _set_targets(session, name, found.targets, changed_by, number)


def find_previous_version(session: Session, alias: Alias) -> int:
    """Return the number of the version before the current one, or before the one that that restored.

    It is 0 for an alias that has no earlier targets.
    """
    current = find_version(session, alias.name, alias.version)
    assert current is not None, "every change is recorded"
    return (current.restored_version or current.version) - 1


class AliasNotFound(NotFound):
    """No alias has this name."""

    code = ErrorCode.alias_not_found


def get_alias(session: Session, name: str) -> Alias:
    """Return an alias; raise AliasNotFound if there is none with this name."""
    alias = session.get(Alias, name)
    if alias is None:
        raise AliasNotFound(
            f"There is no alias {name!r}.",
            hint=f"List the aliases: GET /api/v1/aliases. Create this one: PUT /api/v1/aliases/{name}.",
        )
    return alias


def list_alias_versions(
    session: Session, name: str, paging: PageQuery
) -> tuple[Sequence[AliasVersion], str | None]:
    """Return a page of an alias's versions, newest first, also after the alias was deleted."""
    statement = select(AliasVersion).where(col(AliasVersion.alias) == name)
    return paginate_newest_first(session, statement, col(AliasVersion.id), paging)


def delete_alias(session: Session, name: str, deleted_by: str | None) -> None:
    """Delete an alias but not its versions.

    Raises AliasNotFound, and ServedModelForbidden if the key may not use the name.
    """
    check_names(session, deleted_by, [name])
    session.delete(get_alias(session, name))


def view_alias(session: Session, alias: Alias) -> AliasView:
    """Return the response for an alias, with the deployments of its targets."""
    return view_aliases(session, [alias])[0]


def view_aliases(session: Session, aliases: Sequence[Alias]) -> list[AliasView]:
    """Return the responses for aliases, with the deployments of their targets."""
    holders = find_name_holders(session)
    return [
        AliasView(
            **alias.model_dump(exclude={"targets"}),
            targets=[_view_target(target, holders.get(target["deployment"])) for target in alias.targets],
        )
        for alias in aliases
    ]


def _set_targets(
    session: Session,
    name: str,
    targets: list[dict[str, Any]],
    changed_by: str | None,
    restored_version: int | None = None,
) -> Alias:
    check_names(session, changed_by, [name, *(target["deployment"] for target in targets)])
    lock_name(session, name)
    _check_name_is_free(session, name)
    _check_targets_are_ready(session, name, targets)
    version = write_targets(session, name, targets, changed_by=changed_by, restored_version=restored_version)
    if version is None:
        create_alias(session, name, targets, changed_by=changed_by, restored_version=restored_version)
    session.expire_all()
    return get_alias(session, name)


class NameIsDeployment(Conflict):
    """A live deployment has the name of the alias."""

    code = ErrorCode.name_is_deployment


def _check_name_is_free(session: Session, name: str) -> None:
    live = select(col(Deployment.id)).where(col(Deployment.name) == name, col(Deployment.status).in_(LIVE))
    if (deployment_id := session.scalars(live).first()) is not None:
        raise NameIsDeployment(
            f"The name {name!r} belongs to the deployment {deployment_id}, so no alias can have it.",
            hint=f"Choose another name, or stop it: POST /api/v1/deployments/{deployment_id}/stop.",
        )


class TargetNotReady(Conflict):
    """A target of the alias is not a deployment that can serve requests."""

    code = ErrorCode.target_not_ready


def _check_targets_are_ready(session: Session, name: str, targets: Sequence[dict[str, Any]]) -> None:
    names = [target["deployment"] for target in targets]
    holders = find_name_holders(session, names)
    missing = [target for target in names if target not in holders]
    if missing:
        first = missing[0]
        raise TargetNotReady(
            f"The alias {name!r} cannot route to {first!r}: no deployment of this name is ready or asleep.",
            hint=f"Create it and wait until it is ready: GET /api/v1/deployments?name={first}.",
            fields=[
                {"field": "targets", "message": f"The deployment {target!r} is not ready."}
                for target in missing
            ],
        )
    tasks = {holders[target].task for target in names}
    if len(tasks) > 1:
        raise field_error(
            "targets", "Some of these deployments generate text, and others compute embeddings."
        )


def _view_target(target: dict[str, Any], holder: Deployment | None) -> AliasTargetView:
    return AliasTargetView(
        **target,
        deployment_id=holder.id if holder else None,
        status=holder.status if holder else None,
    )
