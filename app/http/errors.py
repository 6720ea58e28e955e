"""Errors of requests, one base class per HTTP status, and the list of all error codes.

    TunesmithError
      HttpError                400
        Unauthorized           401
        Forbidden              403
        NotFound               404
        MethodNotSupported     405
        Conflict               409
        PayloadTooLarge        413
        UnprocessableContent   422
        InternalServerError    500
        ServiceUnavailable     503

A more specific error is a subclass that is defined next to the function that raises it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from serving.http.errors import ApiError
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


class HttpError(TunesmithError):
    """A request that the service refuses or cannot carry out."""

    status = 400
    code = ErrorCode.bad_request
    headers: dict[str, str] | None = None

    def __init__(
        self, message: str, *, hint: str | None = None, fields: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.fields = fields

    def as_dict(self) -> dict[str, Any]:
        """Return the error as the API shows it, with `fields` if the payload has invalid fields."""
        return super().as_dict() | ({} if self.fields is None else {"fields": self.fields})


class Unauthorized(HttpError):
    """A request without an API key, or with an unknown one."""

    status = 401
    code = ErrorCode.unauthorized
    headers = {"WWW-Authenticate": "Bearer"}  # noqa: RUF012 — read only, like the other attributes


class Forbidden(HttpError):
    """A request with an API key that lacks the required scope."""

    status = 403
    code = ErrorCode.forbidden


class NotFound(HttpError):
    """A request for a route or an object that does not exist."""

    status = 404
    code = ErrorCode.not_found


class MethodNotSupported(HttpError):
    """A request for an existing route with another method."""

    status = 405
    code = ErrorCode.method_not_allowed


class Conflict(HttpError):
    """A valid request that the state of an object does not allow.

    `used_by` contains the ids of the objects that the request would break.
    """

    status = 409
    code = ErrorCode.conflict

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        fields: list[dict[str, Any]] | None = None,
        used_by: list[str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, fields=fields)
        self.used_by = used_by

    def as_dict(self) -> dict[str, Any]:
        """Return the error as the API shows it, with `used_by` if other objects are the reason."""
        return super().as_dict() | ({} if self.used_by is None else {"used_by": self.used_by})


class InUse(Conflict):
    """A request to delete an object that others use."""

    code = ErrorCode.in_use


class PayloadTooLarge(HttpError):
    """A request with a body larger than the service accepts."""

    status = 413
    code = ErrorCode.too_large


class UnprocessableContent(HttpError):
    """A request with a malformed payload; `fields` names each invalid field."""

    status = 422
    code = ErrorCode.invalid


def field_error(field: str, message: str) -> UnprocessableContent:
    """Return the error of one field of a request."""
    return UnprocessableContent(f"{field}: {message}", fields=[{"field": field, "message": message}])


class InternalServerError(HttpError):
    """A request that failed because of a bug."""

    status = 500
    code = ErrorCode.internal_error


class ServiceUnavailable(HttpError):
    """A request that failed because something that the service depends on is unavailable."""

    status = 503
    code = ErrorCode.database_unavailable
    headers = {"Retry-After": "5"}  # noqa: RUF012 — read only, like the other attributes


class ErrorCodeInfo(NamedTuple):
    """A row of the published list of error codes."""

    code: ErrorCode
    statuses: list[int]
    description: str


def list_error_codes() -> list[ErrorCodeInfo]:
    """Return every code with the HTTP statuses of the error classes that have been imported."""
    statuses: dict[ErrorCode, set[int]] = {code: set() for code in ErrorCode}
    for error in [*_subclasses(HttpError), *_subclasses(ApiError)]:
        statuses[error.code].add(error.status)
    return [ErrorCodeInfo(code, sorted(statuses[code]), code.description) for code in ErrorCode]


def _subclasses(error: type[Any]) -> Iterator[type[Any]]:
    yield error
    for subclass in error.__subclasses__():
        yield from _subclasses(subclass)
