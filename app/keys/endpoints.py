"""API keys over HTTP; every endpoint but `GET /keys/self` requires the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query

from app.http.auth import CallerDependency, get_caller, require_admin
from app.http.edges.query import check_query
from app.http.paging import Page, Paging
from app.keys import service
from app.keys.schemas import CallerView, KeyCreate, KeySecretView, KeyUpdate, KeyView, caller_view
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[Depends(require_admin), Depends(check_query)])
own_key_router = APIRouter(
    prefix="/keys", tags=["keys"], dependencies=[Depends(get_caller), Depends(check_query)]
)

CREATE_EXAMPLES = {
    "admin": {"summary": "A key that allows everything", "value": {"name": "me", "scopes": ["admin"]}},
    "limited": {
        "summary": "A key for a program that calls models",
        "value": {
            "name": "website",
            "scopes": ["inference"],
            "requests_per_minute": 600,
            "concurrent_requests": 8,
        },
    },
}
UPDATE_EXAMPLES = {
    "slower": {
        "summary": "Change the rate; omitted fields stay unchanged",
        "value": {"requests_per_minute": 60},
    },
    "unlimited": {"summary": "Remove the rate limit", "value": {"requests_per_minute": None}},
}

KeyId = Annotated[str, Path(description="Id of the API key, `key_…`.")]


@router.post("", status_code=201)
def create_key(
    session: WriteSession, body: Annotated[KeyCreate, Body(openapi_examples=CREATE_EXAMPLES)]
) -> KeySecretView:
    """Create an API key. Only this response contains its secret.

    The first key locks the service, so it needs `lock_service`: from then on every request needs a key. In
    these pages, click Authorize and paste it.
    """
    key, secret, notice = service.create_key_over_http(session, body)
    return KeySecretView(**KeyView.model_validate(key).model_dump(), key=secret, notice=notice)


@router.get("")
def list_keys(session: ReadSession, paging: Paging) -> Page[KeyView]:
    """List API keys, newest first, including revoked ones."""
    keys, after = service.list_keys(session, paging)
    return Page(items=[KeyView.model_validate(key) for key in keys], next=after)


@router.delete("/{key_id}")
def revoke_key(
    key_id: KeyId,
    session: WriteSession,
    purge: Annotated[
        bool, Query(description="Delete its record as well, so that the list of keys no longer contains it.")
    ] = False,
) -> KeyView:
    """Revoke an API key; revoking it again changes nothing.

    The API rejects it at once, `/v1` within a second, and a standalone gateway within six seconds.
    """
    key = service.revoke_key(session, key_id)
    if purge:
        service.delete_key(session, key)
    return KeyView.model_validate(key)


@router.patch("/{key_id}")
def update_key(
    key_id: KeyId, session: WriteSession, body: Annotated[KeyUpdate, Body(openapi_examples=UPDATE_EXAMPLES)]
) -> KeyView:
    """Change the limits of an API key.

    They take effect in `/v1` within a second, and in a standalone gateway within six seconds.
    """
    return KeyView.model_validate(service.update_key(session, key_id, body))


@own_key_router.get("/self")
def get_own_key(caller: CallerDependency) -> CallerView:
    """Return the scopes and limits of the API key that the request was sent with. Requires no scope."""
    return caller_view(caller)
