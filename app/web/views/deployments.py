"""Deployments, with the aliases that route to them: what they do now, and what can be done with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Path, Query, Request, Response
from sqlmodel import Session

from app.aliases import service as aliases
from app.aliases.schemas import AliasView
from app.aliases.targets import find_name_holders, list_all_aliases
from app.deployments import service
from app.deployments.actions import DeploymentAction, DeploymentActionState, list_deployment_actions
from app.deployments.requests import ServedRequests, count_requests
from app.deployments.schemas import DeploymentView
from app.http.paging import PageQuery
from app.promotions.schemas import PromotionView
from app.promotions.service import list_unfinished_promotions
from app.storage.database import ReadSession, WriteSession
from app.tables import DeploymentStatus, Scope
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.url_state import ListFilters
from app.web.visitor import CurrentVisitor, Visitor, view_router
from app.workers.names import name_workers

PARTS = "deployments/parts.jinja"
ALIASES = "aliases/parts.jinja"

router = view_router()

DeploymentId = Annotated[str, Path(pattern=r"^deployment_[0-9a-z]{1,40}$")]


@dataclass(frozen=True)
class DeploymentQuery(ListFilters):
    """The filters of the list, all of which are in the URL."""

    status: str = ""
    name: str = ""
    after: str | None = None


@dataclass(frozen=True)
class DeploymentList:
    """The deployments of a page of the list, and all aliases."""

    deployments: Sequence[DeploymentView]
    aliases: Sequence[AliasView]
    promotions: Sequence[PromotionView]
    """Those that have not ended."""
    names: Sequence[str]
    """Names to which an alias can route."""
    next: str | None


@dataclass(frozen=True)
class DeploymentDetails:
    """A deployment, what can be done with it, and the aliases that route to its name."""

    deployment: DeploymentView
    requests: ServedRequests
    actions: Sequence[DeploymentActionState]
    aliases: Sequence[AliasView]
    promotions: Sequence[PromotionView]
    workers: dict[str, str]


def deployment_query(
    status: Literal[""] | DeploymentStatus = "",
    name: Annotated[str, Query(max_length=100)] = "",
    after: Annotated[str | None, Query(pattern=r"^deployment_[0-9a-z]{26}$")] = None,
) -> DeploymentQuery:
    """Return the filters of a request."""
    return DeploymentQuery(status, name.strip(), after)


Filters = Annotated[DeploymentQuery, Depends(deployment_query)]


@router.get("/deployments")
def list_all(request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters) -> Response:
    """Show the aliases, and the deployments, newest first."""
    view = _list_view(filters)
    state = view.load(session)
    parts = view.render(state, visitor)
    statuses = list(DeploymentStatus)
    return render_page(
        request, "deployments/list.jinja", state=state, parts=parts, filters=filters, statuses=statuses
    )


@router.get("/deployments/stream")
def stream_all(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(filters), version)


@router.get("/deployments/{deployment_id}")
def show_deployment(
    request: Request, session: ReadSession, visitor: CurrentVisitor, deployment_id: DeploymentId
) -> Response:
    """Show a deployment."""
    view = _page_view(deployment_id)
    state = view.load(session)
    return render_page(request, "deployments/page.jinja", state=state, parts=view.render(state, visitor))


@router.get("/deployments/{deployment_id}/stream")
def stream_deployment(request: Request, deployment_id: DeploymentId, version: Version = "") -> Response:
    """Stream the parts of a deployment's page that change."""
    return stream_view(request, _page_view(deployment_id), version)


@router.post("/deployments/{deployment_id}/{action}")
def act_on_deployment(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    deployment_id: DeploymentId,
    action: DeploymentAction,
) -> Response:
    """Stop, wake or delete a deployment, and return to its page or to the list."""
    assert visitor.caller is not None
    key_id = visitor.caller.key_id
    match action:
        case DeploymentAction.stop:
            service.stop_deployment(session, deployment_id, False, key_id)
        case DeploymentAction.wake:
            visitor.caller.require(Scope.inference)
            service.wake_deployment(session, deployment_id, key_id)
        case DeploymentAction.delete:
            service.delete_deployment(session, deployment_id, key_id)
            return go_to(request, "/deployments")
    return go_to(request, f"/deployments/{deployment_id}")


def _list_view(filters: DeploymentQuery) -> LiveView[DeploymentList]:
    def load(session: Session) -> DeploymentList:
        status = DeploymentStatus(filters.status) if filters.status else None
        page = PageQuery(after=filters.after)
        found, after = service.list_deployments(session, page, status, filters.name or None)
        views = [service.view_deployment(session, row) for row in found]
        return DeploymentList(
            deployments=views,
            aliases=aliases.view_aliases(session, list_all_aliases(session)),
            promotions=list_unfinished_promotions(session),
            names=sorted(find_name_holders(session)),
            next=after,
        )

    def render(state: DeploymentList, visitor: Visitor) -> Parts:
        language = visitor.language
        rows = {f"row-{each.id}": render_macro(language, PARTS, "row", each) for each in state.deployments}
        parts = {
            "aliases": render_macro(language, ALIASES, "boxes", state.aliases, state.promotions, visitor),
            "alias-names": render_macro(language, ALIASES, "name_options", "alias-names", state.names),
        }
        empty = render_macro(language, PARTS, "empty_row", filters)
        return Parts(parts=parts, rows=rows, table="deployments", empty=empty)

    return LiveView(load, render)


def _page_view(deployment_id: str) -> LiveView[DeploymentDetails]:
    def load(session: Session) -> DeploymentDetails:
        row = service.get_deployment(session, deployment_id)
        view = service.view_deployment(session, row)
        found = aliases.view_aliases(session, list_all_aliases(session))
        routed = [each for each in found if any(target.deployment == row.name for target in each.targets)]
        workers = name_workers(session, [view.worker_id])
        promotions = list_unfinished_promotions(session)
        requests = count_requests(row.name)
        return DeploymentDetails(view, requests, list_deployment_actions(row), routed, promotions, workers)

    def render(state: DeploymentDetails, visitor: Visitor) -> Parts:
        language = visitor.language
        parts = {
            "deployment-head": render_macro(language, PARTS, "head", state, visitor),
            "deployment-facts": render_macro(language, PARTS, "facts", state),
            "aliases": render_macro(language, ALIASES, "boxes", state.aliases, state.promotions, visitor),
        }
        return Parts(parts=parts)

    return LiveView(load, render)
