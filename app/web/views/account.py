"""The login, the logout, and the language and theme of the pages."""

import math
import re
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.http.errors import HttpError
from app.keys import web_sessions
from app.web.catalogue import COOKIE as LANGUAGE_COOKIE
from app.web.catalogue import Language
from app.web.login_limit import LoginLimit
from app.web.rendering import render_page
from app.web.url_state import ONE_YEAR_SECONDS
from app.web.visitor import (
    THEME_COOKIE,
    Theme,
    check_form,
    cookie_name,
    current_visitor,
    get_visitor,
    set_session_cookie,
)

# Paths of this service only: `//host` and `/\\host` are other sites.
OWN_PATH = re.compile(r"/(?![/\\])[^\\\s\x00-\x1f]*")
START = "/jobs"

router = APIRouter(dependencies=[Depends(check_form)])
limit = LoginLimit()

Next = Annotated[str, Query(max_length=2000)]
FormText = Annotated[str, Form(max_length=2000)]


@router.get("/")
def start() -> Response:
    """Redirect to the jobs."""
    return RedirectResponse(START, 303)


@router.get("/login")
def show_login(request: Request, next: Next = START) -> Response:
    """Show the form of the login, unless the visitor needs none."""
    try:
        get_visitor(request)
    except HttpError as error:
        if error.status != 401:
            raise
        return render_page(request, "account/login.jinja", next=own_path(next), problem=None)
    return RedirectResponse(own_path(next), 303)


@router.post("/login")
def log_in(request: Request, key: FormText, next: FormText = START) -> Response:
    """Begin a session with an API key."""
    address = request.client.host if request.client else ""
    context = {"next": own_path(next)}
    if (seconds := limit.seconds_to_wait(address)) > 0:
        response = render_page(request, "account/login.jinja", 429, problem="too_many", **context)
        response.headers["Retry-After"] = str(math.ceil(seconds))
        return response
    try:
        token = web_sessions.log_in(key.strip())
    except web_sessions.KeyUnusable:
        limit.record_failure(address)
        return render_page(request, "account/login.jinja", 401, problem="unknown_key", **context)
    except HttpError as error:
        if error.status != 403:
            raise
        return render_page(request, "account/login.jinja", 403, problem="no_read_scope", **context)
    redirect = RedirectResponse(own_path(next), 303)
    set_session_cookie(redirect, replace(current_visitor(request), token=token))
    return redirect


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    visitor = current_visitor(request)
    web_sessions.log_out(visitor.token)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(cookie_name(request), secure=visitor.is_secure, httponly=True, samesite="strict")
    return response


@router.post("/preferences")
def set_preferences(
    next: FormText = START,
    language: Annotated[Language | None, Form()] = None,
    theme: Annotated[Theme | None, Form()] = None,
) -> Response:
    """Keep the language or the theme in the browser, and return to the page."""
    response = RedirectResponse(own_path(next), 303)
    for name, value in ((LANGUAGE_COOKIE, language), (THEME_COOKIE, theme)):
        if value is not None:
            response.set_cookie(name, value, max_age=ONE_YEAR_SECONDS, httponly=True, samesite="lax")
    return response


def own_path(path: str) -> str:
    """Return the path if it is one of this service, else that of the start page."""
    if not OWN_PATH.fullmatch(path) or urlsplit(path).netloc:
        return START
    return path
