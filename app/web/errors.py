"""Errors of pages: a page for a person, a notice for a form that htmx has sent, or the login."""

from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, ValidationError

from app.http.error_responses import CONVERTED_ERRORS, as_http_error, headers_of, list_field_errors
from app.http.errors import HttpError, UnprocessableContent
from app.http.unavailable import as_server_error
from app.logs import request_id
from app.web.rendering import address_of, is_htmx, render_macro, render_page, render_partial
from app.web.visitor import SAFE_METHODS, current_visitor, identify
from serving.http.errors import ApiError
from trainers.runtime.error_codes import ErrorCode

Form = TypeVar("Form", bound=BaseModel)

RETRY_SECONDS = 5
# Statuses with a title of their own.
TITLED = (403, 404, 409, 422, 429, 500, 503)


def install_page_errors(app: FastAPI) -> None:
    """Make the app respond to every error with a page."""
    app.add_exception_handler(HttpError, _handle_http_error)
    app.add_exception_handler(ApiError, _handle_api_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    for error in CONVERTED_ERRORS:
        app.add_exception_handler(error, _handle_http_exception)
    # The middleware of the API logs the exception, which is raised again.
    app.add_exception_handler(Exception, _handle_exception)


def parse_form(model: type[Form], /, **values: Any) -> Form:
    """Return what a form asks for; raises RequestValidationError for values that a request may not have."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(errors, body=values) from error


def name_fields(error: RequestValidationError) -> UnprocessableContent:
    """Return the error with each invalid field, as the API does."""
    fields = list_field_errors(error.errors(), error.body)
    return UnprocessableContent(f"{fields[0]['field']}: {fields[0]['message']}", fields=fields)


def error_page(request: Request, error: HttpError) -> Response:
    """Return the response to an error."""
    if error.status == 401:
        return _ask_for_login(request)
    headers = dict(error.headers or {})
    visitor = current_visitor(request)
    if is_htmx(request):
        notice = render_macro(visitor.language, "parts.jinja", "error_notice", error)
        return HTMLResponse(render_partial("notices", notice, "innerHTML"), error.status, headers)
    # A page that was only read can be read again.
    retry = RETRY_SECONDS if error.status == 503 and request.method in SAFE_METHODS else None
    title = str(error.status) if error.status in TITLED else "other"
    response = render_page(request, "error.jinja", error.status, error=error, title=title, retry=retry)
    response.headers.update(headers)
    return response


def _ask_for_login(request: Request) -> Response:
    """Return the way to the login, from which the visitor comes back to this page."""
    here = address_of(request)
    if request.headers.get("sec-fetch-site") == "cross-site" and not identify(request).has_cookie:
        # The cookie is not sent when another site links to a page. The page that this one loads gets it.
        return render_page(request, "account/enter.jinja", address_to_enter=here)
    if is_htmx(request):
        # The page that has sent the request; the login accepts paths of this service only.
        page = urlsplit(request.headers.get("hx-current-url", ""))
        here = f"{page.path}?{page.query}" if page.query else page.path
        return Response(status_code=401, headers={"HX-Redirect": _login_for(here)})
    if request.method not in SAFE_METHODS or "text/html" not in request.headers.get("accept", ""):
        return Response("log in first", 401, media_type="text/plain")
    return RedirectResponse(_login_for(here), 303)


def _login_for(page: str) -> str:
    return "/login" if page in ("", "/") else f"/login?{urlencode({'next': page})}"


def _handle_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error_page(request, error)


def _handle_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    converted = HttpError(error.message)
    converted.status, converted.code, converted.headers = error.status, error.code, headers_of(error)
    return error_page(request, converted)


def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_page(request, name_fields(error))


def _handle_http_exception(request: Request, error: Exception) -> Response:
    converted, headers = as_http_error(request, error)
    if converted.code is ErrorCode.not_found:
        converted.hint = None
    converted.headers = headers
    return error_page(request, converted)


def _handle_exception(request: Request, error: Exception) -> Response:
    return error_page(request, as_server_error(error, request_id.get()))
