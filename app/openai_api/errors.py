"""OpenAI's error object, and the conversion of exceptions to it.

Its clients choose an exception class by the status, and repeat 408, 409, 429 and 5xx: a permanent refusal is
therefore never a 409, and invalid parameters are a 400.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from app import logs
from app.http.error_responses import as_http_error, list_field_errors
from app.http.errors import HttpError, UnprocessableContent
from app.http.unavailable import as_server_error
from trainers.runtime.error_codes import ErrorCode

STATUSES = {409: 400, 422: 400}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    message: str = Field(description="What is wrong and what to do, as sentences.")
    type: str = Field(description="Kind of the error, such as `invalid_request_error`.")
    param: str | None = Field(description="The parameter that is wrong, such as `training_file`.")
    code: str | None = Field(description="Reason of the failure, for programs to branch on.")


class OpenAIErrorResponse(BaseModel):
    """The body of every response that is not a success."""

    error: OpenAIError = Field(description="The error of the request.")


def install_openai_errors(app: FastAPI) -> None:
    """Make the app return an `OpenAIErrorResponse` for every error of a request."""
    app.add_exception_handler(HttpError, _handle_http_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(DataError, _handle_http_exception)
    # Without it, Starlette would respond in plain text before the outermost middleware sees the exception.
    app.add_exception_handler(Exception, _handle_bug)


def openai_error_response(error: HttpError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error, with its own headers unless others are given."""
    status = STATUSES.get(error.status, error.status)
    # The whole body has no name.
    param = (error.fields[0]["field"] or None) if error.fields else None
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    message = f"{error.message} {error.hint or ''}".strip()
    code = ErrorCode.invalid_api_key if status == 401 else error.code
    detail = OpenAIError(message=message, type=kind, param=param, code=code)
    headers = dict(headers or error.headers or {})
    if (seconds := headers.get("Retry-After", "")).isdigit():
        # OpenAI's clients prefer the milliseconds.
        headers["Retry-After-Ms"] = str(int(seconds) * 1000)
    return JSONResponse({"error": detail.model_dump()}, status, headers)


def _handle_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HttpError)
    return openai_error_response(error)


def _handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    converted, headers = as_http_error(request, error)
    if converted.status == 404 and converted.code == ErrorCode.not_found:
        converted.code = ErrorCode.unknown_url
    if converted.status in (404, 405):
        converted.hint = "The routes are listed at /v1/docs."
    return openai_error_response(converted, headers)


def _handle_bug(request: Request, error: Exception) -> JSONResponse:
    return openai_error_response(as_server_error(error, logs.request_id.get()))


def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return openai_error_response(parameter_error(error.errors(), error.body))


def parameter_error(errors: Any, body: Any) -> UnprocessableContent:
    """Return the error of a request with invalid parameters, named after the first one."""
    fields = list_field_errors(errors, body)
    name, message = fields[0]["field"], fields[0]["message"]
    more = f" ({len(fields) - 1} more)" if len(fields) > 1 else ""
    converted = UnprocessableContent(
        f"{name}: {message}{more}" if name else f"{message}{more}", fields=fields
    )
    if any(found["type"] == "extra_forbidden" for found in errors):
        converted.code = ErrorCode.unknown_parameter
    return converted
