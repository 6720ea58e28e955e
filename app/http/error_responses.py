"""The one shape in which every fault of a request is answered, and how faults become it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from app.http.errors import HttpError, Unauthorized
from trainers.configs.base import PRINTABLE_PATTERN

CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
SEND_JSON = "Send a JSON object in UTF-8 with the header Content-Type: application/json."
# What pydantic says of these would tell a person of its own workings, and not what to do.
SENTENCES = {
    "extra_forbidden": "There is no such field: correct its name or leave it out.",
    "union_tag_not_found": "Field required.",
    "model_attributes_type": "Input should be a JSON object.",
    "model_type": "Input should be a JSON object.",
    "dict_type": "Input should be a JSON object.",
    "list_type": "Input should be a JSON array.",
}


class FieldError(BaseModel):
    """One wrong field of a payload."""

    field: str = Field(description="Path of the field, such as `stages.0.learning_rate`.")
    message: str


class ErrorDetail(BaseModel):
    """What is wrong and what to do."""

    code: str
    message: str
    hint: str | None = None
    fields: list[FieldError] | None = Field(
        None, description="Each wrong field, when the payload is at fault."
    )


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def install_error_handlers(app: FastAPI) -> None:
    """Answer every fault of a request with the envelope."""
    app.add_exception_handler(HttpError, _app_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(DataError, _data_error)


def error_response(
    status: int,
    code: str,
    message: str,
    hint: str | None = None,
    fields: Sequence[dict[str, Any]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """A response with the envelope as its body."""
    error: dict[str, Any] = {"code": code, "message": message, "hint": hint}
    if fields is not None:
        error["fields"] = list(fields)
    return JSONResponse({"error": error}, status, headers)


def _app_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HttpError)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
    return error_response(error.status_code, error.code, error.message, error.hint, error.fields, headers)


def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        # FastAPI's answer to bytes that are no text, and to JSON too deep or with numbers too long.
        return error_response(422, "invalid", "The body cannot be read as JSON.", SEND_JSON)
    code = CODES.get(error.status_code, "http_error")
    message, hint = f"{error.detail}.", None
    if error.status_code in (404, 405):
        message = f"There is no {request.method} {request.url.path}."
        hint = "The routes are listed at /docs."
    headers = dict(error.headers) if error.headers else None
    return error_response(error.status_code, code, message, hint, headers=headers)


def _data_error(request: Request, error: Exception) -> JSONResponse:
    """PostgreSQL refuses some text that JSON allows, above all the character NUL."""
    return error_response(
        422, "invalid", "The request holds a value that the database cannot store, such as the character NUL."
    )


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = list_field_errors(error.errors(), error.body)
    first = f"{fields[0]['field']}: {fields[0]['message']}" if fields[0]["field"] else fields[0]["message"]
    more = f" ({len(fields) - 1} more)" if len(fields) > 1 else ""
    hint = SEND_JSON if not fields[0]["field"] else None
    return error_response(422, "invalid", f"The request is malformed. {first}{more}", hint, fields=fields)


def list_field_errors(errors: Sequence[Any], body: Any) -> list[dict[str, str]]:
    """Pydantic's errors as paths into the payload, without the union tags that it mixes into them.

    Of the members of a union only those errors are kept that belong to the member which was most
    likely meant.
    """
    unions: dict[tuple[str, ...], dict[str, list[tuple[str, dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for error in errors:
        path, union, member = _place(error, body)
        unions[union][member].append((".".join(path), error))
    kept = [found for members in unions.values() for found in _likeliest(members)]
    return [{"field": path, "message": _sentence(error)} for path, error in kept]


def _place(error: Any, body: Any) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The path of an error in the payload, and where the last union on it stands with its member."""
    source, *parts = error["loc"]
    if source != "body" or error["type"] == "json_invalid":
        return tuple(str(part) for part in parts if error["type"] != "json_invalid"), (), ""
    path: list[str] = []
    union: tuple[str, ...] = ()
    member = ""
    for position, part in enumerate(parts):
        missing = error["type"] == "missing" and position == len(parts) - 1
        present = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if not present and not missing:
            union, member = tuple(path), str(part)
            continue
        path.append(str(part))
        body = body[part] if present else None
    if error["type"].startswith("union_tag_"):
        path.append(error["ctx"]["discriminator"].strip("'"))
    return tuple(path), union, member


def _likeliest(members: dict[str, list[tuple[str, dict[str, Any]]]]) -> list[tuple[str, dict[str, Any]]]:
    """The errors of the union's member with the right type and the fewest faults."""
    return min(members.values(), key=lambda errors: (errors[0][1]["type"].endswith("_type"), len(errors)))


def _sentence(error: dict[str, Any]) -> str:
    message = SENTENCES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "union_tag_invalid":
        message = f"Input should be one of {error['ctx']['expected_tags']}"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == PRINTABLE_PATTERN:
        message = "It may hold no control characters"
    if error["type"] == "json_invalid":
        message = f"the body is not JSON: {error['ctx']['error']}"
    return message if message.endswith(".") else f"{message}."
