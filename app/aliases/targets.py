"""Queries from aliases to deployments and back."""

from collections.abc import Iterable, Sequence

from sqlalchemy import and_, or_, select
from sqlmodel import Session, col

from app.tables import Alias, AliasVersion, Deployment, DeploymentStatus, Promotion, PromotionStatus

SERVING = (DeploymentStatus.ready, DeploymentStatus.asleep)
STARTING = (DeploymentStatus.queued, DeploymentStatus.starting)


def list_alias_names(session: Session, deployment: str) -> list[str]:
    """Return the names of the aliases that route to a deployment of this name, or would after a rollback."""
    before = and_(
        col(AliasVersion.alias) == col(Promotion.alias),
        col(AliasVersion.version) == col(Promotion.version_before),
        col(Promotion.status) == PromotionStatus.active,
    )
    promoted = session.execute(
        select(col(AliasVersion.alias), col(AliasVersion.targets)).join(Promotion, before)
    )
    current = [(alias.name, alias.targets) for alias in list_all_aliases(session)]
    names = [
        name
        for name, targets in [*current, *promoted]
        if any(target["deployment"] == deployment for target in targets)
    ]
    return list(dict.fromkeys(names))


def find_name_holders(session: Session, names: Iterable[str] | None = None) -> dict[str, Deployment]:
    """Return, by name, the deployments that serve requests or that start again or for a request."""
    # A deployment that was created asleep has not been ready before a request wakes it.
    is_expected = or_(col(Deployment.ready_at).is_not(None), col(Deployment.last_used_at).is_not(None))
    starts_again = and_(col(Deployment.status).in_(STARTING), is_expected)
    statement = select(Deployment).where(
        col(Deployment.replaces).is_(None), or_(col(Deployment.status).in_(SERVING), starts_again)
    )
    if names is not None:
        statement = statement.where(col(Deployment.name).in_(list(names)))
    return {row.name: row for row in session.scalars(statement)}


def list_first_starts(session: Session) -> Sequence[Deployment]:
    """Return the deployments that start and have not been ready before, oldest first."""
    never_ready = (
        col(Deployment.status).in_(STARTING),
        col(Deployment.ready_at).is_(None),
        col(Deployment.last_used_at).is_(None),
    )
    return session.scalars(select(Deployment).where(*never_ready).order_by(col(Deployment.id))).all()


def list_all_aliases(session: Session) -> Sequence[Alias]:
    """Return all aliases by name."""
    return session.scalars(select(Alias).order_by(col(Alias.name))).all()
