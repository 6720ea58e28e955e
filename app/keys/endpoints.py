"""API keys over HTTP; every route needs the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends

from app.auth import require_admin
from app.db import Reading, Writing
from app.keys import service
from app.keys.schemas import CreatedKey, KeyView, NewKey
from app.paging import Page, Paging

router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[Depends(require_admin)])

EXAMPLES = {
    "admin": {"summary": "A key that allows everything", "value": {"name": "me", "scopes": ["admin"]}}
}


@router.post("", status_code=201)
def create_key(new: Annotated[NewKey, Body(openapi_examples=EXAMPLES)], session: Writing) -> CreatedKey:
    """Make an API key. Its secret is in this answer and nowhere else."""
    key, secret = service.create_over_http(session, new.name, new.scopes)
    return CreatedKey(**KeyView.model_validate(key).model_dump(), key=secret)


@router.get("")
def list_keys(session: Reading, paging: Paging) -> Page[KeyView]:
    """Keys from new to old."""
    keys, following = service.listed(session, paging)
    return Page(items=[KeyView.model_validate(key) for key in keys], next=following)


@router.delete("/{key_id}")
def revoke_key(key_id: str, session: Writing) -> KeyView:
    """Revoke a key: the next request that carries it is refused."""
    return KeyView.model_validate(service.revoke(session, key_id))
