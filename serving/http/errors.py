"""Errors in the shape that OpenAI's clients understand."""

import json
from collections.abc import Iterable

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError

NAMES_IN_A_MESSAGE = 20


class ApiError(TunesmithError):
    """A request that ends with `status` and OpenAI's error object."""

    status = 400
    type = "invalid_request_error"
    code = ErrorCode.bad_request
    retry_after_seconds: int | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> bytes:
        """The JSON of a plain answer, which is also the data of an error event in a stream."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of a plain answer."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_seconds is not None:
            headers.append((b"retry-after", str(self.retry_after_seconds).encode()))
        return headers


class InvalidRequest(ApiError):
    """The request cannot be carried out as it stands."""

    code = ErrorCode.invalid_request


class ContextLengthExceeded(ApiError):
    """Prompt and answer do not fit the model."""

    code = ErrorCode.context_length_exceeded


class BodyTooLarge(ApiError):
    """The request's body is larger than the limit."""

    status = 413
    code = ErrorCode.request_too_large


class InvalidApiKey(ApiError):
    """No key, or one that is not valid."""

    status = 401
    type = "authentication_error"
    code = ErrorCode.invalid_api_key

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"www-authenticate", b"Bearer")]


class PermissionDenied(ApiError):
    """The key is valid but may not do this."""

    status = 403
    type = "permission_error"
    code = ErrorCode.forbidden


class MalformedRequest(ApiError):
    """What came is no HTTP/1.1 request, or one that two servers might read differently."""

    code = ErrorCode.malformed_request


class HeadersTooLarge(ApiError):
    """The request's line and headers are larger than the limit."""

    status = 431
    code = ErrorCode.headers_too_large


class RequestTimeout(ApiError):
    """The request did not come whole in time."""

    status = 408
    code = ErrorCode.request_timeout


class UnknownUrl(ApiError):
    """Nothing is served at this path."""

    status = 404
    code = ErrorCode.unknown_url


class MethodNotAllowed(ApiError):
    """The path exists but not for this method."""

    status = 405
    code = ErrorCode.method_not_allowed

    def __init__(self, path: str, method: str, allowed: str) -> None:
        super().__init__(f"{path} answers to {allowed}, not to {method}.")
        self.allowed = allowed

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"allow", self.allowed.encode())]


class ModelNotServed(ApiError):
    """No model of that name is served."""

    status = 404
    code = ErrorCode.model_not_found

    def __init__(self, name: str, served: Iterable[str]) -> None:
        names = sorted(served)
        listed = ", ".join(names[:NAMES_IN_A_MESSAGE]) + (", …" if len(names) > NAMES_IN_A_MESSAGE else "")
        super().__init__(f"The model {name!r} does not exist. Served now: {listed or 'none'}.", "model")


class RetryableError(ApiError):
    """What cannot be done now, but may be done in a while."""

    retry_after_seconds: int

    def __init__(self, message: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds


class RateLimitExceeded(RetryableError):
    """The key has sent as many requests as it may for now."""

    status = 429
    type = "rate_limit_error"
    code = ErrorCode.rate_limit_exceeded
    retry_after_seconds = 1


class ConcurrencyLimitExceeded(RateLimitExceeded):
    """The key has as many requests under way as it may."""

    code = ErrorCode.concurrency_limit_exceeded


class EngineUnavailable(RetryableError):
    """The engine cannot take the request now, but may a moment later."""

    status = 503
    type = "server_error"
    code = ErrorCode.engine_unavailable
    retry_after_seconds = 2


class EngineCircuitOpen(EngineUnavailable):
    """Every engine of the name has failed too often to be asked just now."""

    def __init__(self, name: str, retry_after_seconds: int) -> None:
        failed = f"The engine of {name!r} has failed several times in a row and is left alone for now."
        super().__init__(failed, retry_after_seconds)


class EngineDisconnected(ApiError):
    """The engine broke off in the middle of its answer."""

    status = 502
    type = "server_error"
    code = ErrorCode.engine_disconnected

    def __init__(self, name: str) -> None:
        broken = f"The engine of {name!r} broke off in the middle of its answer"
        super().__init__(f"{broken}; send the request again.")


class ResponseTooLarge(ApiError):
    """The engine's answer is more than the gateway holds."""

    status = 502
    type = "server_error"
    code = ErrorCode.answer_too_large

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"The answer is over {most_bytes // 2**20} MiB; ask for less, or for a stream.")


class EngineTimeout(ApiError):
    """The engine sent nothing for too long."""

    status = 504
    type = "server_error"
    code = ErrorCode.engine_timeout

    def __init__(self, name: str) -> None:
        super().__init__(f"The engine of {name!r} has sent nothing for too long; try again later.")


class InternalError(ApiError):
    """A fault of ours."""

    status = 500
    type = "server_error"
    code = ErrorCode.internal_error
