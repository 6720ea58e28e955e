"""The routing table, derived from deployments and aliases."""

from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import Session, col

from app.aliases.promotions import list_measured_versions
from app.aliases.targets import find_name_holders, list_all_aliases, list_first_starts
from app.http.auth import Caller
from app.routing_table.schemas import ChatModelView, RouteTargetView, RouteView
from app.storage.database import database_now
from app.tables import Alias, Deployment, DeploymentStatus
from serving.gateway.rate_limits import AuthorizedClient
from trainers.configs import EngineTask


def list_routes(session: Session) -> list[RouteView]:
    """Return every model name with the targets that share its requests."""
    holders = find_name_holders(session)
    deployed = [
        RouteView(name=name, targets=[view_target(deployment, 1.0)], created_at=deployment.created_at)
        for name, deployment in holders.items()
    ]
    starting = [
        RouteView(
            name=deployment.name,
            targets=[],
            created_at=deployment.created_at,
            not_ready=deployment.current_status,
        )
        for deployment in list_first_starts(session)
        if deployment.name not in holders
    ]
    measured = list_measured_versions(session)
    aliased = [
        _view_alias_route(alias, holders, measured.get(alias.name)) for alias in list_all_aliases(session)
    ]
    return [*deployed, *starting, *aliased]


def list_chat_models(session: Session, caller: Caller) -> list[ChatModelView]:
    """Return the names that generate text and that a caller may use, the ready and the newest first."""
    client = AuthorizedClient(models=caller.models)
    routes = [
        route
        for route in list_routes(session)
        if client.may_use(route.name)
        and (not route.targets or any(target.task is not EngineTask.embed for target in route.targets))
    ]
    routes.sort(key=lambda route: route.created_at, reverse=True)
    views = [
        ChatModelView(
            name=route.name,
            status=_chat_status(route),
            shares=len(route.targets),
            stores=any(target.store_days for target in route.targets),
        )
        for route in routes
    ]
    return sorted(views, key=lambda view: view.status != DeploymentStatus.ready)


def find_base_name(session: Session, name: str) -> str | None:
    """Return the name that serves the base of a served adapter; None if there is none."""
    holders = find_name_holders(session)
    tuned = holders.get(name)
    if tuned is None or tuned.model_id is None:
        return None
    names = (each.name for each in holders.values() if each.base == tuned.base and each.model_id is None)
    return next(names, None)


def _chat_status(route: RouteView) -> str:
    if route.not_ready is not None:
        return route.not_ready
    if any(target.base_url for target in route.targets):
        return DeploymentStatus.ready
    reachable = any(target.deployment_id for target in route.targets)
    return DeploymentStatus.asleep if reachable else DeploymentStatus.stopped


def view_target(deployment: Deployment, share: float) -> RouteTargetView:
    """Return the target of a deployment's requests."""
    return RouteTargetView(
        deployment_id=deployment.id,
        base_url=(deployment.address or "").rstrip("/") if deployment.is_ready else "",
        upstream_model=deployment.upstream_model or deployment.name,
        share=share,
        store_days=deployment.store_days,
        task=deployment.task,
    )


def record_use(session: Session, deployment_ids: Sequence[str]) -> None:
    """Set the time of the last request of deployments, which keeps them awake."""
    used = update(Deployment).where(col(Deployment.id).in_(deployment_ids))
    session.execute(used.values(last_used_at=database_now()).execution_options(synchronize_session=False))


def _view_alias_route(
    alias: Alias, holders: dict[str, Deployment], measured_version: int | None
) -> RouteView:
    """Return the route of an alias; existing deployments share the requests of missing ones.

    Requests are counted under a version only while the alias has its targets. An alias
    without any deployment has a route too: the attempt to wake its target reports the reason.
    """
    targets = [
        view_target(holders[target["deployment"]], target["share"])
        for target in alias.targets
        if target["deployment"] in holders
    ]
    missing = RouteTargetView(deployment_id="", base_url="", upstream_model="", share=1.0)
    return RouteView(
        name=alias.name,
        targets=targets or [missing],
        created_at=alias.created_at,
        measured_version=measured_version if measured_version == alias.version else None,
    )
