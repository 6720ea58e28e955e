"""An alias: the shares of its deployments, canaries, promotions by steps, and its earlier versions."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Form, Path, Query, Request, Response
from sqlmodel import Session

from app.aliases import service
from app.aliases.schemas import AliasUpdate, AliasVersionView, AliasView
from app.deployments.requests import ServedRequests, count_requests
from app.http.paging import PageQuery
from app.promotions.schemas import PromotionView
from app.promotions.service import (
    can_be_promoted,
    find_active_promotion,
    list_candidates,
    list_judges,
    list_promotions,
)
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.url_state import ListFilters
from app.web.views.new_job.start import suggest_datasets
from app.web.visitor import CurrentVisitor, Visitor, view_router
from trainers.configs.base import NAME_PATTERN

PARTS = "aliases/parts.jinja"

router = view_router()

AliasName = Annotated[str, Path(pattern=NAME_PATTERN)]
NameText = Annotated[str, Form(max_length=100)]
After = Annotated[str | None, Query(pattern=r"^aliasversion_[0-9a-z]{26}$")]
PromotionsAfter = Annotated[str | None, Query(pattern=r"^run_[0-9a-z]{26}$")]
PROMOTIONS_ON_PAGE = 10


@dataclass(frozen=True)
class AliasPosition(ListFilters):
    """The positions in the lists of versions and of promotions, which are in the URL."""

    promotions_after: str | None
    after: str | None


def alias_position(after: After = None, promotions_after: PromotionsAfter = None) -> AliasPosition:
    """Return the positions of a request."""
    return AliasPosition(promotions_after, after)


Position = Annotated[AliasPosition, Depends(alias_position)]


@dataclass(frozen=True)
class AliasDetails:
    """An alias with a page of its promotions and of its versions, and what its forms can name."""

    alias: AliasView
    requests: ServedRequests
    previous: int
    """The version that a rollback restores: a form that is sent twice goes back once. 0 without one."""
    candidates: Sequence[str]
    promotions: Sequence[PromotionView]
    next_promotions: str | None
    active: PromotionView | None
    """The promotion that moves the alias now."""
    versions: Sequence[AliasVersionView]
    next: str | None

    @property
    def promotable(self) -> list[str]:
        """The deployments that a promotion can name."""
        return [name for name in self.candidates if can_be_promoted(name)]


@router.post("/aliases")
def create_alias(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    name: Annotated[str, Form(pattern=NAME_PATTERN)],
    deployment: NameText,
) -> Response:
    """Create an alias that routes to one deployment."""
    body = parse_form(AliasUpdate, targets=[{"deployment": deployment}])
    service.update_alias(session, name, body, _key_of(visitor))
    return go_to(request, f"/aliases/{name}")


@router.get("/aliases/{name}")
def show_alias(
    request: Request, session: ReadSession, visitor: CurrentVisitor, name: AliasName, position: Position
) -> Response:
    """Show an alias."""
    view = _page_view(name, position)
    state = view.load(session)
    return render_page(
        request,
        "aliases/page.jinja",
        state=state,
        parts=view.render(state, visitor),
        filters=position,
        key=secrets.token_hex(16),
        judges=list_judges(session, get_settings()),
        datasets=suggest_datasets(session),
    )


@router.get("/aliases/{name}/stream")
def stream_alias(request: Request, name: AliasName, position: Position, version: Version = "") -> Response:
    """Stream the parts of an alias's page that change."""
    return stream_view(request, _page_view(name, position), version)


@router.post("/aliases/{name}/share")
def give_share(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    name: AliasName,
    deployment: NameText,
    percent: Annotated[float, Form(gt=0, le=100)],
) -> Response:
    """Give a deployment a share of an alias's requests."""
    service.give_share(session, name, deployment, percent / 100, _key_of(visitor))
    return go_to(request, f"/aliases/{name}")


@router.post("/aliases/{name}/rollback")
def roll_back(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    name: AliasName,
    version: Annotated[int | None, Form(ge=1, lt=2**31)] = None,
) -> Response:
    """Restore the targets of a version, by default those from before the last change."""
    service.roll_back_alias(session, name, version, _key_of(visitor))
    return go_to(request, f"/aliases/{name}")


@router.post("/aliases/{name}/delete")
def delete_alias(
    request: Request, session: WriteSession, visitor: CurrentVisitor, name: AliasName
) -> Response:
    """Delete an alias; its deployments and its versions remain."""
    service.delete_alias(session, name, _key_of(visitor))
    return go_to(request, "/deployments")


def _key_of(visitor: Visitor) -> str | None:
    assert visitor.caller is not None
    return visitor.caller.key_id or None


def _page_view(name: str, position: AliasPosition) -> LiveView[AliasDetails]:
    def load(session: Session) -> AliasDetails:
        alias = service.get_alias(session, name)
        query = PageQuery(limit=20, after=position.after)
        versions, following = service.list_alias_versions(session, name, query)
        query = PageQuery(limit=PROMOTIONS_ON_PAGE, after=position.promotions_after)
        promotions, next_promotions = list_promotions(session, name, query)
        return AliasDetails(
            alias=service.view_alias(session, alias),
            requests=count_requests(name),
            previous=service.find_previous_version(session, alias),
            candidates=[each.name for each in list_candidates(session, alias)],
            promotions=promotions,
            next_promotions=next_promotions,
            active=find_active_promotion(session, name),
            versions=[AliasVersionView.model_validate(version) for version in versions],
            next=following,
        )

    def render(state: AliasDetails, visitor: Visitor) -> Parts:
        language = visitor.language
        names = ("head", "targets", "share-choice", "promotion-choice", "promotions")
        parts = {
            f"alias-{each}": render_macro(language, PARTS, each.replace("-", "_"), state, visitor)
            for each in names
        }
        rows = {
            f"version-{each.version}": render_macro(language, PARTS, "version", each, state.alias, visitor)
            for each in state.versions
        }
        return Parts(parts=parts, rows=rows, table="versions")

    return LiveView(load, render)
