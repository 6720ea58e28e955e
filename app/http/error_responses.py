"""The response body of every error, and the conversion of exceptions to it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from app.http.errors import HttpError, MethodNotSupported, NotFound, PayloadTooLarge, UnprocessableContent
from serving.http.errors import ApiError
from serving.http.limits import MAX_BODY_BYTES
from trainers.configs.base import NAME_PATTERN, PRINTABLE_PATTERN, UNPRINTABLE_TEXT
from trainers.runtime.error_codes import ErrorCode

# Exceptions of others that `as_http_error` converts.
CONVERTED_ERRORS: tuple[type[Exception], ...] = (HTTPException, DataError)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
SEND_JSON_HINT = "Send a JSON object in UTF-8 with the header Content-Type: application/json."
# Replacements for pydantic messages that describe its internals instead of what to change.
VALIDATION_MESSAGES = {
    "extra_forbidden": "There is no such field: correct its name or leave it out.",
    "union_tag_not_found": "Field required.",
    "model_attributes_type": "Input should be a JSON object.",
    "model_type": "Input should be a JSON object.",
    "dict_type": "Input should be a JSON object.",
    "list_type": "Input should be a JSON array.",
}
PATTERN_MESSAGES = {
    PRINTABLE_PATTERN: f"It must not contain {UNPRINTABLE_TEXT}: remove them, or type the text by hand",
    NAME_PATTERN: "A name has at most 63 lower-case letters, digits, `_` and `-`, and begins with one of the "
    "first two",
}


class FieldError(BaseModel):
    """An invalid field of a payload."""

    field: str = Field(description="Path of the field, such as `stages.0.learning_rate`.")
    message: str = Field(description="What is wrong with the field.")


class ErrorDetail(BaseModel):
    """A code, a message and a hint."""

    code: ErrorCode = Field(description="Reason of the failure, for programs to branch on.")
    message: str = Field(description="What is wrong, as a sentence.")
    hint: str | None = Field(None, description="What to do about it.")
    fields: list[FieldError] | None = Field(
        None, description="Each invalid field, if the payload is malformed."
    )
    used_by: list[str] | None = Field(
        None, description="Ids of the objects that use the one to be deleted, or names of its aliases."
    )


class ErrorResponse(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail = Field(description="The error of the request.")


def install_error_handlers(app: FastAPI) -> None:
    """Make the app return an `ErrorResponse` for every error of a request."""
    app.add_exception_handler(HttpError, _handle_http_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    for error in CONVERTED_ERRORS:
        app.add_exception_handler(error, _handle_http_exception)


def error_response(error: HttpError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error, with its own headers unless others are given."""
    return JSONResponse({"error": error.as_dict()}, error.status, headers or error.headers)


def error_response_of(error: ApiError) -> JSONResponse:
    """Return the response for an error of `serving`, in the API's format."""
    return JSONResponse({"error": error.as_dict()}, error.status, headers_of(error))


def headers_of(error: ApiError) -> dict[str, str]:
    """Return the headers of the response to an error of `serving`."""
    return {name.decode(): value.decode() for name, value in error.headers()}


def _handle_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HttpError)
    return error_response(error)


def as_http_error(request: Request, error: Exception) -> tuple[HttpError, dict[str, str] | None]:
    """Convert an exception of FastAPI, Starlette or the database's driver; return its headers as well."""
    if isinstance(error, DataError):
        # PostgreSQL refuses text that JSON allows, above all the character NUL.
        return UnprocessableContent(
            "The request contains a value that the database cannot store, such as the character NUL.",
            hint="Remove control characters from the values.",
        ), None
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    if error.status_code == 405 and (allowed := _allowed_methods(request)):
        headers = {"Allow": ", ".join(allowed)}
    if error.status_code == 400:
        # FastAPI raises it for bytes that are not UTF-8, and for JSON with excessive depth or numbers.
        converted: HttpError = UnprocessableContent("The body cannot be read as JSON.", hint=SEND_JSON_HINT)
    elif error.status_code in (404, 405):
        missing = NotFound if error.status_code == 404 else MethodNotSupported
        converted = missing(
            f"There is no route {request.method} {request.url.path}.", hint="The routes are listed at /docs."
        )
    elif error.status_code == 413:
        converted = PayloadTooLarge(
            f"The body is larger than {MAX_BODY_BYTES} bytes.",
            hint="Send rows as a file: POST /v1/files or POST /api/v1/datasets.",
        )
    else:
        converted = HttpError(f"{error.detail}.")
        converted.status, converted.code = error.status_code, ErrorCode.http_error
    return converted, headers


def _handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    return error_response(*as_http_error(request, error))


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes of the path: Starlette lists those of the first one only."""
    # The routes of a mounted application have paths below its own.
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    scope = {"type": "http", "path": path, "root_path": "", "headers": []}
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    allowed = [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    # The service responds to HEAD wherever it responds to GET.
    return [*allowed, "HEAD"] if "GET" in allowed else allowed


def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = list_field_errors(error.errors(), error.body)
    name, message = fields[0]["field"], fields[0]["message"]
    first = f"{name}: {message}" if name else message
    more = f" ({len(fields) - 1} more)" if len(fields) > 1 else ""
    return error_response(
        UnprocessableContent(
            f"The request is malformed. {first}{more}",
            hint=None if name else SEND_JSON_HINT,
            fields=fields,
        )
    )


def list_field_errors(errors: Sequence[Any], body: Any) -> list[dict[str, str]]:
    """Convert pydantic's errors to paths into the payload, without the union tags that pydantic inserts.

    Of a union's members, only the errors of the most likely intended one are returned.
    """
    unions: dict[tuple[str, ...], dict[str, list[tuple[str, dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for error in errors:
        path, union, member = _locate(error, body)
        unions[union][member].append((".".join(path), error))
    kept = [found for members in unions.values() for found in _most_likely_member(members)]
    return [{"field": path, "message": _field_message(error)} for path, error in kept]


def _locate(error: Any, body: Any) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return an error's path in the payload, the path of the last union on it, and the union's member."""
    source, *parts = error["loc"]
    if source != "body" or error["type"] == "json_invalid":
        return tuple(str(part) for part in parts if error["type"] != "json_invalid"), (), ""
    path: list[str] = []
    union: tuple[str, ...] = ()
    member = ""
    for position, part in enumerate(parts):
        missing = error["type"] == "missing" and position == len(parts) - 1
        present = (
            part in body if isinstance(body, Mapping) else isinstance(body, list) and isinstance(part, int)
        )
        if not present and not missing:
            union, member = tuple(path), str(part)
            continue
        path.append(str(part))
        body = body[part] if present else None
    if error["type"].startswith("union_tag_"):
        path.append(error["ctx"]["discriminator"].strip("'"))
    return tuple(path), union, member


def _most_likely_member(
    members: dict[str, list[tuple[str, dict[str, Any]]]],
) -> list[tuple[str, dict[str, Any]]]:
    """Return the errors of the union's member that has the right type and the fewest errors."""

    def rank(errors: list[tuple[str, dict[str, Any]]]) -> tuple[bool, int]:
        kind = errors[0][1]["type"]
        # A number that is out of bounds was not meant as one of the other member's words.
        return kind.endswith("_type") or kind == "literal_error", len(errors)

    likely = min(members.values(), key=rank)
    path, error = likely[0]
    words = [
        other["ctx"]["expected"]
        for found in members.values()
        for place, other in found
        if other["type"] == "literal_error" and place == path and other is not error
    ]
    # If the value has the type of no member, the words of one are named with the type of the other.
    return (
        [(path, error | {"msg": f"{error['msg']}, or {words[0]}"})] if rank(likely)[0] and words else likely
    )


def _field_message(error: dict[str, Any]) -> str:
    message = VALIDATION_MESSAGES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "union_tag_invalid":
        message = f"Input should be one of {error['ctx']['expected_tags']}"
    if error["type"] == "string_pattern_mismatch":
        message = PATTERN_MESSAGES.get(error["ctx"]["pattern"], message)
    if error["type"] == "missing" and error["loc"] == ("body",):
        message = "The request has no body"
    if error["type"] == "too_short" and error["ctx"]["min_length"] == 1:
        message = "The list must not be empty"
    if error["type"] == "json_invalid":
        message = f"The body is not JSON: {error['ctx']['error']}"
    return message if message.endswith((".", "?")) else f"{message}."
