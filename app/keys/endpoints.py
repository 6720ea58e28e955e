"""API keys over HTTP; every endpoint but `GET /keys/self` requires the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query

from app.http.auth import CallerDependency, get_caller, require_admin, require_by_method
from app.http.edges.query import check_query
from app.http.paging import Page, Paging
from app.keys import service, token_use
from app.keys.schemas import (
    CallerView,
    KeyCreate,
    KeySecretView,
    KeyUpdate,
    KeyView,
    TokenUseCreate,
    TokenUseTotal,
    TokenUseView,
    caller_view,
    key_view,
)
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[Depends(require_admin), Depends(check_query)])
own_key_router = APIRouter(
    prefix="/keys", tags=["keys"], dependencies=[Depends(get_caller), Depends(check_query)]
)
token_use_router = APIRouter(
    prefix="/token-use", tags=["routes"], dependencies=[Depends(require_by_method), Depends(check_query)]
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
            "tokens_per_day": 1_000_000,
            "models": ["starter", "ft:*"],
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
    return KeySecretView(**key_view(key, 0).model_dump(), key=secret, notice=notice)


@router.get("")
def list_keys(session: ReadSession, paging: Paging) -> Page[KeyView]:
    """List API keys, newest first, including revoked ones."""
    keys, after = service.list_keys(session, paging)
    return Page(items=service.view_keys(session, keys), next=after)


@router.get("/{key_id}")
def get_key(session: ReadSession, key_id: KeyId) -> KeyView:
    """Return an API key with its limits and the tokens that it has used today."""
    return service.view_keys(session, [service.get_key(session, key_id)])[0]


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
    view = service.view_keys(session, [key])[0]
    if purge:
        service.delete_key(session, key)
    return view


@router.patch("/{key_id}")
def update_key(
    key_id: KeyId, session: WriteSession, body: Annotated[KeyUpdate, Body(openapi_examples=UPDATE_EXAMPLES)]
) -> KeyView:
    """Change the limits of an API key.

    They take effect in `/v1` within a second, and in a standalone gateway within six seconds.
    """
    return service.view_keys(session, [service.update_key(session, key_id, body)])[0]


@own_key_router.get("/self")
def get_own_key(session: ReadSession, caller: CallerDependency) -> CallerView:
    """Return the scopes and limits of the API key that the request was sent with. Requires no scope."""
    return caller_view(caller, token_use.count_tokens_today(session, [caller.key_id]).get(caller.key_id, 0))


@token_use_router.post("")
def record_token_use(session: WriteSession, body: TokenUseCreate) -> TokenUseView:
    """Record the tokens of keys that a gateway process has counted, and return their totals.

    It requires the scope `write`: a report can use up the tokens of any key.
    """
    totals = token_use.record_tokens(session, body.reporter, [item.model_dump() for item in body.items])
    return TokenUseView(items=[TokenUseTotal(key_id=key, tokens=tokens) for key, tokens in totals.items()])
