"""Errors of requests, with their HTTP status."""

from typing import Any

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


class HttpError(TunesmithError):
    """A request that cannot be carried out; `fields` names each invalid field."""

    status_code = 400
    code = ErrorCode.bad_request

    def __init__(
        self, message: str, *, hint: str | None = None, fields: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.fields = fields


class Unauthorized(HttpError):
    """No key, or one that is not known."""

    status_code = 401
    code = ErrorCode.unauthorized


class Forbidden(HttpError):
    """A known key without the scope that the request needs."""

    status_code = 403
    code = ErrorCode.forbidden


class NotFound(HttpError):
    """Nothing has this id."""

    status_code = 404
    code = ErrorCode.not_found


class Conflict(HttpError):
    """The request is well formed, but what it names is not in a state that allows it."""

    status_code = 409
    code = ErrorCode.conflict


class PayloadTooLarge(HttpError):
    """More bytes than the service accepts."""

    status_code = 413
    code = ErrorCode.too_large


class UnprocessableContent(HttpError):
    """A malformed payload; `fields` names each wrong field."""

    status_code = 422
    code = ErrorCode.invalid
