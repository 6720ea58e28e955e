"""Where aliases lead."""

from collections.abc import Iterable, Sequence

from sqlalchemy import and_, or_, select
from sqlmodel import Session, col

from app.tables import Alias, Deployment, DeploymentStatus

ANSWER = (DeploymentStatus.ready, DeploymentStatus.asleep)
COME_BACK = (DeploymentStatus.queued, DeploymentStatus.starting)


def list_alias_names(session: Session, deployment: str) -> list[str]:
    """Names of the aliases that lead to a deployment of this name."""
    return [
        alias.name
        for alias in list_all_aliases(session)
        if any(target["deployment"] == deployment for target in alias.targets)
    ]


def find_name_holders(session: Session, names: Iterable[str] | None = None) -> dict[str, Deployment]:
    """Deployments by the names that they hold: those that answer, and those that did and will again."""
    come_back = and_(col(Deployment.status).in_(COME_BACK), col(Deployment.ready_at).is_not(None))
    statement = select(Deployment).where(
        col(Deployment.replaces).is_(None), or_(col(Deployment.status).in_(ANSWER), come_back)
    )
    if names is not None:
        statement = statement.where(col(Deployment.name).in_(list(names)))
    return {row.name: row for row in session.scalars(statement)}


def list_all_aliases(session: Session) -> Sequence[Alias]:
    """Every alias by name."""
    return session.scalars(select(Alias).order_by(col(Alias.name))).all()
