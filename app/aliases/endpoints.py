"""Aliases over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Body, Path

from app.aliases import service
from app.aliases.schemas import (
    ROLLBACK_EXAMPLES,
    UPDATE_EXAMPLES,
    AliasRollback,
    AliasUpdate,
    AliasVersionView,
    AliasView,
)
from app.aliases.targets import list_all_aliases
from app.http.auth import CallerDependency
from app.http.paging import Page, Paging
from app.promotions import service as promotion_service
from app.promotions.schemas import PromotionView
from app.storage.database import ReadSession, WriteSession
from trainers.configs.base import NAME_PATTERN

router = APIRouter(prefix="/aliases", tags=["aliases"])

AliasName = Annotated[
    str,
    Path(pattern=NAME_PATTERN, examples=["starter-prod"], description="Name of the alias."),
]


@router.put("/{name}")
def update_alias(
    session: WriteSession,
    caller: CallerDependency,
    name: AliasName,
    body: Annotated[AliasUpdate, Body(openapi_examples=UPDATE_EXAMPLES)],
) -> AliasView:
    """Create an alias or change its targets; all later requests go to the new targets."""
    return service.view_alias(session, service.update_alias(session, name, body, caller.key_id or None))


@router.get("")
def list_aliases(session: ReadSession) -> Page[AliasView]:
    """List all aliases by name, on one page."""
    return Page(items=service.view_aliases(session, list_all_aliases(session)), next=None)


@router.get("/{name}")
def get_alias(session: ReadSession, name: AliasName) -> AliasView:
    """Return an alias with the deployments of its targets."""
    return service.view_alias(session, service.get_alias(session, name))


@router.get("/{name}/history")
def list_alias_versions(session: ReadSession, name: AliasName, paging: Paging) -> Page[AliasVersionView]:
    """List the versions of an alias, newest first. They are kept when the alias is deleted."""
    versions, after = service.list_alias_versions(session, name, paging)
    return Page(items=[AliasVersionView.model_validate(version) for version in versions], next=after)


@router.get("/{name}/promotions")
def list_promotions(session: ReadSession, name: AliasName, paging: Paging) -> Page[PromotionView]:
    """List the promotions of an alias, newest first: its `promote` stages, with what was measured.

    `next` is the id of the page's last run.
    """
    promotions, after = promotion_service.list_promotions(session, name, paging)
    return Page(items=promotions, next=after)


@router.post("/{name}/rollback")
def roll_back_alias(
    session: WriteSession,
    caller: CallerDependency,
    name: AliasName,
    body: Annotated[AliasRollback, Body(openapi_examples=ROLLBACK_EXAMPLES)],
) -> AliasView:
    """Restore the targets of an earlier version; repeated rollbacks go further back."""
    return service.view_alias(
        session, service.roll_back_alias(session, name, body.version, caller.key_id or None)
    )


@router.delete("/{name}", status_code=204)
def delete_alias(session: WriteSession, caller: CallerDependency, name: AliasName) -> None:
    """Delete an alias; its deployments and its versions remain."""
    service.delete_alias(session, name, caller.key_id or None)
