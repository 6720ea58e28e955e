"""API keys over HTTP; every route but the one that tells a caller of itself needs the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends

from app.http.auth import CallerDependency, require_admin
from app.http.paging import Page, Paging
from app.keys import service
from app.keys.schemas import CallerView, KeyCreate, KeyLimits, KeySecretView, KeyView
from app.storage.database import ReadSession, WriteSession
from app.tables import Scope

router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[Depends(require_admin)])
own = APIRouter(prefix="/keys", tags=["keys"])

EXAMPLES = {
    "admin": {"summary": "A key that allows everything", "value": {"name": "me", "scopes": ["admin"]}},
    "limited": {
        "summary": "A key for a program that asks models",
        "value": {
            "name": "website",
            "scopes": ["inference"],
            "requests_per_minute": 600,
            "concurrent_requests": 8,
        },
    },
}
LIMIT_EXAMPLES = {
    "slower": {"summary": "Another rate; what is left out stays", "value": {"requests_per_minute": 60}},
    "unlimited": {"summary": "No limit on the rate any more", "value": {"requests_per_minute": None}},
}


@router.post("", status_code=201)
def create_key(
    new: Annotated[KeyCreate, Body(openapi_examples=EXAMPLES)], session: WriteSession
) -> KeySecretView:
    """Make an API key. Its secret is in this answer and nowhere else."""
    limits = new.model_dump(include=set(KeyLimits.model_fields))
    key, secret = service.create_over_http(session, new.name, new.scopes, limits)
    return KeySecretView(**KeyView.model_validate(key).model_dump(), key=secret)


@router.get("")
def list_keys(session: ReadSession, paging: Paging) -> Page[KeyView]:
    """Keys from new to old."""
    keys, following = service.listed(session, paging)
    return Page(items=[KeyView.model_validate(key) for key in keys], next=following)


@router.delete("/{key_id}")
def revoke_key(key_id: str, session: WriteSession) -> KeyView:
    """Revoke a key. The API refuses it at once, `/v1` within a second, a gateway of its own within six."""
    return KeyView.model_validate(service.revoke(session, key_id))


@router.patch("/{key_id}")
def limit_key(
    key_id: str, limits: Annotated[KeyLimits, Body(openapi_examples=LIMIT_EXAMPLES)], session: WriteSession
) -> KeyView:
    """Change a key's limits; `/v1` heeds them within a second, a gateway of its own within six."""
    key = service.limit(session, key_id, limits.model_dump(exclude_unset=True))
    return KeyView.model_validate(key)


@own.get("/self")
def show_own_key(caller: CallerDependency) -> CallerView:
    """What the key of this request allows; any key will do."""
    return CallerView(
        key_id=caller.key_id,
        scopes=sorted(map(Scope, caller.scopes)),
        requests_per_minute=caller.requests_per_minute,
        concurrent_requests=caller.concurrent_requests,
    )
