"""Who looks at a page: the login, the language and the theme, all from cookies.

The cookie of a login authenticates the pages only; the API reads the header `Authorization` alone. Without
API keys nobody logs in, by the same rule as in the API (`app.http.auth`).
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.http.auth import Caller, authenticate
from app.http.errors import Forbidden
from app.keys.web_sessions import IDLE, find_session, record_use
from app.storage.database import DATABASE_UNAVAILABLE, read_session
from app.tables import Scope
from app.web.catalogue import Language, choose_language
from serving.http.addresses import is_forwarded
from serving.http.cross_site import OriginPolicy

SESSION_COOKIE = "tunesmith_session"
THEME_COOKIE = "tunesmith_theme"
CSRF_FIELD, CSRF_HEADER = "csrf", "x-csrf-token"
SAFE_METHODS = ("GET", "HEAD")
# The origins that may use the API (CORS) may not use the pages.
OWN_ORIGIN = OriginPolicy()


class Theme(StrEnum):
    """The colours of the pages; `auto` follows the system."""

    auto = "auto"
    light = "light"
    dark = "dark"


@dataclass(frozen=True)
class Visitor:
    """The sender of a request for a page."""

    token: str
    has_cookie: bool
    is_secure: bool
    language: Language
    theme: Theme
    caller: Caller | None = None
    key_name: str | None = None

    @property
    def csrf(self) -> str:
        """The token that every form must contain; it does not reveal the cookie."""
        return hashlib.sha256(f"csrf:{self.token}".encode()).hexdigest()

    @property
    def is_logged_in(self) -> bool:
        """Whether a key was given; not so on a service without keys."""
        return self.key_name is not None

    def may(self, scope: str) -> bool:
        """Return whether the visitor has a scope."""
        return self.caller is not None and self.caller.may(Scope(scope))


class FormRejected(Forbidden):
    """A form without the token of its page."""


def identify(request: Request) -> Visitor:
    """Return the visitor without the caller, from the request alone."""
    cookie = request.cookies.get(cookie_name(request))
    theme = request.cookies.get(THEME_COOKIE, "")
    return Visitor(
        token=cookie or secrets.token_urlsafe(32),
        has_cookie=cookie is not None,
        is_secure=_is_secure(request),
        language=choose_language(request),
        theme=Theme(theme) if theme in set(Theme) else Theme.auto,
    )


def current_visitor(request: Request) -> Visitor:
    """Return the visitor that the request's dependencies have found, or one without a caller."""
    visitor = getattr(request.state, "visitor", None)
    if visitor is None:
        visitor = request.state.visitor = identify(request)
    assert isinstance(visitor, Visitor)
    return visitor


def get_visitor(request: Request) -> Visitor:
    """Return the visitor with the caller.

    Raises:
        Unauthorized: The visitor must log in.
        Forbidden: No key exists, and the request is not local.
    """
    visitor = current_visitor(request)
    found = None
    if visitor.has_cookie:
        with read_session() as session:
            found = find_session(session, visitor.token)
    if found is None:
        client = request.client.host if request.client else ""
        headers = dict(request.headers.raw)
        caller = authenticate(None, headers.get(b"host", b""), client, is_forwarded(headers))
        visitor = replace(visitor, caller=caller, key_name=None)
    else:
        visitor = replace(visitor, caller=found.caller, key_name=found.key_name)
        if found.is_outdated:
            # A database that is locked or full can still be read.
            with suppress(*DATABASE_UNAVAILABLE):
                record_use(visitor.token)
    request.state.visitor = visitor
    return visitor


CurrentVisitor = Annotated[Visitor, Depends(get_visitor)]


async def check_form(request: Request) -> None:
    """Raise FormRejected for a change that is not requested by a form of this visitor's page."""
    if request.method in SAFE_METHODS:
        return
    OWN_ORIGIN.check(request.method, dict(request.headers.raw))
    given = request.headers.get(CSRF_HEADER)
    content_type = request.headers.get("content-type", "")
    if given is None and content_type.startswith("application/x-www-form-urlencoded"):
        given = str((await request.form()).get(CSRF_FIELD, ""))
    check_token(request, given)


def check_token(request: Request, given: str | None) -> None:
    """Raise FormRejected if a form's token is not that of this visitor's pages."""
    visitor = current_visitor(request)
    if not visitor.has_cookie or not hmac.compare_digest((given or "").encode(), visitor.csrf.encode()):
        raise FormRejected(
            "The form is not from a page that you have open, or its login has ended.",
            hint="Reload the page and send it again.",
        )


async def check_upload(request: Request) -> None:
    """Raise CrossSiteRequest for an upload from another site; its route checks the token.

    Without scripts the token is a field of the form, which is read to disk as it arrives.
    """
    OWN_ORIGIN.check(request.method, dict(request.headers.raw))
    if (given := request.headers.get(CSRF_HEADER)) is not None:
        check_token(request, given)


def view_router(
    read: Scope = Scope.read,
    write: Scope = Scope.write,
    check: Callable[[Request], Awaitable[None]] = check_form,
) -> APIRouter:
    """Return the router of a view: every route needs a login and a scope, and every change a valid form."""

    async def check_scope(request: Request, visitor: CurrentVisitor) -> None:
        assert visitor.caller is not None
        visitor.caller.require(read if request.method in SAFE_METHODS else write)

    return APIRouter(dependencies=[Depends(check), Depends(check_scope)])


def set_session_cookie(response: Response, visitor: Visitor) -> None:
    """Send the visitor's token as a cookie that scripts cannot read and other sites cannot send."""
    response.set_cookie(
        _cookie_name(visitor.is_secure),
        visitor.token,
        max_age=int(IDLE.total_seconds()),
        secure=visitor.is_secure,
        httponly=True,
        samesite="strict",
    )


def cookie_name(request: Request) -> str:
    """Return the name of the cookie with the token."""
    return _cookie_name(_is_secure(request))


def _cookie_name(is_secure: bool) -> str:
    # Browsers accept a cookie with this prefix from the host itself only, and over TLS only.
    return f"__Host-{SESSION_COOKIE}" if is_secure else SESSION_COOKIE


def _is_secure(request: Request) -> bool:
    """Return whether the browser uses TLS; a false header of a client weakens its own cookie only."""
    return "https" in (request.scope["scheme"], request.headers.get("x-forwarded-proto"))
