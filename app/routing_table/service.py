"""From deployments and aliases to the names that clients ask for."""

from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import Session, col

from app.aliases.targets import find_name_holders, list_all_aliases
from app.routing_table.schemas import RouteTargetView, RouteView
from app.storage.database import database_now
from app.tables import Alias, Deployment, DeploymentStatus


def list_routes(session: Session) -> list[RouteView]:
    """Every name, with the targets that share its requests."""
    there = find_name_holders(session)
    deployed = [
        RouteView(name=name, targets=[view_target(row, 1.0)], created_at=row.created_at)
        for name, row in there.items()
    ]
    return [*deployed, *(_aliased(alias, there) for alias in list_all_aliases(session))]


def view_target(deployment: Deployment, share: float) -> RouteTargetView:
    """Where a deployment's requests go."""
    is_ready = deployment.status is DeploymentStatus.ready
    return RouteTargetView(
        deployment_id=deployment.id,
        base_url=(deployment.address or "").rstrip("/") if is_ready else "",
        upstream_model=deployment.upstream_model or deployment.name,
        share=share,
    )


def record_use(session: Session, deployment_ids: Sequence[str]) -> None:
    """Keep deployments from falling asleep."""
    asked = update(Deployment).where(col(Deployment.id).in_(deployment_ids))
    session.execute(asked.values(last_used_at=database_now()).execution_options(synchronize_session=False))


def _aliased(alias: Alias, there: dict[str, Deployment]) -> RouteView:
    """Targets whose deployment is gone leave their share to the others.

    An alias without any is listed all the same: that it leads nowhere is told by waking what is not there.
    """
    targets = [
        view_target(there[asked["deployment"]], asked["share"])
        for asked in alias.targets
        if asked["deployment"] in there
    ]
    nowhere = RouteTargetView(deployment_id="", base_url="", upstream_model="", share=1.0)
    return RouteView(name=alias.name, targets=targets or [nowhere], created_at=alias.created_at)
