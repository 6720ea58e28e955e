"""From deployments and aliases to the names that clients ask for."""

from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import Session, col

from app.aliases.targets import all_aliases, holders
from app.routing_table.schemas import RouteOut, TargetOut
from app.storage.database import database_now
from app.tables import Alias, Deployment, DeploymentStatus


def table(session: Session) -> list[RouteOut]:
    """Every name, with the targets that share its requests."""
    there = holders(session)
    deployed = [
        RouteOut(name=name, targets=[target(row, 1.0)], created_at=row.created_at)
        for name, row in there.items()
    ]
    return [*deployed, *(_aliased(alias, there) for alias in all_aliases(session))]


def target(deployment: Deployment, share: float) -> TargetOut:
    """Where a deployment's requests go."""
    is_ready = deployment.status is DeploymentStatus.ready
    return TargetOut(
        deployment_id=deployment.id,
        base_url=(deployment.address or "").rstrip("/") if is_ready else "",
        upstream_model=deployment.upstream_model or deployment.name,
        share=share,
    )


def note_use(session: Session, deployment_ids: Sequence[str]) -> None:
    """Keep deployments from falling asleep."""
    asked = update(Deployment).where(col(Deployment.id).in_(deployment_ids))
    session.execute(asked.values(last_used_at=database_now()).execution_options(synchronize_session=False))


def _aliased(alias: Alias, there: dict[str, Deployment]) -> RouteOut:
    """Targets whose deployment is gone leave their share to the others.

    An alias without any is listed all the same: that it leads nowhere is told by waking what is not there.
    """
    targets = [
        target(there[asked["deployment"]], asked["share"])
        for asked in alias.targets
        if asked["deployment"] in there
    ]
    nowhere = TargetOut(deployment_id="", base_url="", upstream_model="", share=1.0)
    return RouteOut(name=alias.name, targets=targets or [nowhere], created_at=alias.created_at)
