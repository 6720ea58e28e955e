"""Aliases over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Body, Path

from app.aliases import service
from app.aliases.schemas import (
    EXAMPLES,
    ROLLBACK_EXAMPLES,
    AliasRollback,
    AliasUpdate,
    AliasVersionView,
    AliasView,
)
from app.http.paging import Page, Paging
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/aliases", tags=["aliases"])

Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", examples=["starter-prod"])]


@router.put("/{name}")
def move_alias(
    session: WriteSession, name: Name, body: Annotated[AliasUpdate, Body(openapi_examples=EXAMPLES)]
) -> AliasView:
    """Make an alias or move it; every request from then on goes to the new targets."""
    return service.move(session, name, body)


@router.get("")
def list_aliases(session: ReadSession) -> Page[AliasView]:
    """All aliases by name."""
    return Page(items=service.listed(session), next=None)


@router.get("/{name}")
def get_alias(session: ReadSession, name: Name) -> AliasView:
    """One alias, with the deployments that it leads to."""
    return service.get(session, name)


@router.get("/{name}/history")
def list_alias_history(session: ReadSession, name: Name, paging: Paging) -> Page[AliasVersionView]:
    """Where it led, from new to old; kept when the alias is deleted."""
    versions, after = service.history(session, name, paging)
    return Page(items=[AliasVersionView.model_validate(version) for version in versions], next=after)


@router.post("/{name}/rollback")
def roll_back_alias(
    session: WriteSession,
    name: Name,
    body: Annotated[AliasRollback, Body(openapi_examples=ROLLBACK_EXAMPLES)],
) -> AliasView:
    """Lead it where it led before; asked again, one move further back."""
    return service.rollback(session, name, body.version)


@router.delete("/{name}", status_code=204)
def delete_alias(session: WriteSession, name: Name) -> None:
    """Remove an alias; its deployments and its history stay."""
    service.delete(session, name)
