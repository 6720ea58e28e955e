"""Errors in the shape that OpenAI's clients understand."""

import json
import math
from collections.abc import Iterable

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError

MAX_LISTED_NAMES = 20


class ApiError(TunesmithError):
    """A request that ends with `status` and OpenAI's error object."""

    status = 400
    type = "invalid_request_error"
    code = ErrorCode.bad_request
    retry_after_seconds: float | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> bytes:
        """Return the JSON of a response, which is also the data of an error event in a stream."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of a response."""
        headers = [(b"content-type", b"application/json")]
        if (seconds := self.retry_after_seconds) is not None:
            # OpenAI's clients prefer the milliseconds.
            headers.append((b"retry-after", b"%d" % math.ceil(seconds)))
            headers.append((b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)))
        return headers


class InvalidRequest(ApiError):
    """A parameter of the request is invalid."""

    code = ErrorCode.invalid_request


class ContextLengthExceeded(ApiError):
    """Prompt and completion exceed the model's context length."""

    code = ErrorCode.context_length_exceeded


class MaxTokensTooLarge(ApiError):
    """The request asks for more tokens than the prompt leaves room for."""

    code = ErrorCode.max_tokens_too_large


class BodyTooLarge(ApiError):
    """The request body is larger than the limit."""

    status = 413
    code = ErrorCode.request_too_large

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The request body is larger than {max_bytes} bytes. Send a shorter prompt.")


class InvalidApiKey(ApiError):
    """The API key is missing or invalid."""

    status = 401
    type = "authentication_error"
    code = ErrorCode.invalid_api_key

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"www-authenticate", b"Bearer")]


class PermissionDenied(ApiError):
    """The API key is valid but lacks the permission."""

    status = 403
    type = "permission_error"
    code = ErrorCode.forbidden


class MalformedRequest(ApiError):
    """The bytes are not an HTTP/1.1 request, or two servers might parse them differently."""

    code = ErrorCode.malformed_request


class HeadersTooLarge(ApiError):
    """The request line and headers are larger than the limit."""

    status = 431
    code = ErrorCode.headers_too_large


class UrlTooLong(HeadersTooLarge):
    """The request line is larger than the limit."""

    status = 414


class RequestTimeout(ApiError):
    """The request did not arrive in time."""

    status = 408
    code = ErrorCode.request_timeout


class UnsupportedEncoding(ApiError):
    """The body is compressed in a way that the server does not unpack."""

    status = 415
    code = ErrorCode.unsupported_encoding

    def __init__(self, encoding: str, supported: str = "Use gzip, or leave it out.") -> None:
        super().__init__(f"The Content-Encoding {encoding!r} is not supported. {supported}")


class UnknownUrl(ApiError):
    """Nothing is served at this path."""

    status = 404
    code = ErrorCode.unknown_url


class MethodNotAllowed(ApiError):
    """The path exists, but not for this method."""

    status = 405
    code = ErrorCode.method_not_allowed

    def __init__(self, path: str, method: str, allowed: str) -> None:
        super().__init__(f"{path} does not allow the method {method}. Use {allowed}.")
        self.allowed = allowed

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"allow", self.allowed.encode())]


class ModelNotServed(ApiError):
    """No model of this name is served."""

    status = 404
    code = ErrorCode.model_not_found

    def __init__(self, name: str, served: Iterable[str]) -> None:
        names = sorted(served)
        listed = ", ".join(names[:MAX_LISTED_NAMES]) + (", …" if len(names) > MAX_LISTED_NAMES else "")
        super().__init__(f"The model {name!r} does not exist. Available: {listed or 'none'}.", "model")


class TaskNotServed(ApiError):
    """The model computes embeddings and the request asks for a text, or the other way round."""

    code = ErrorCode.task_not_served

    def __init__(self, name: str, path: str, embeds: bool) -> None:
        reason = (
            f"The model {name!r} computes embeddings, so it does not serve {path}. Send its texts to "
            "/v1/embeddings, or choose a model that generates text."
            if embeds
            else f"The model {name!r} generates text, so it does not serve {path}. Choose an embedding "
            "model: a deployment with `task: embed`."
        )
        super().__init__(reason, "model")


class RetryableError(ApiError):
    """The request failed, and may succeed after `retry_after_seconds`."""

    retry_after_seconds: float

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds


class RateLimitExceeded(RetryableError):
    """The API key has used its requests of the minute."""

    status = 429
    type = "rate_limit_error"
    code = ErrorCode.rate_limit_exceeded
    retry_after_seconds = 1


class ConcurrencyLimitExceeded(RateLimitExceeded):
    """The API key has as many open requests as it may have."""

    code = ErrorCode.concurrency_limit_exceeded


class TokensOfDayUsed(RetryableError):
    """The API key has used its tokens of the day."""

    status = 429
    type = "insufficient_quota"
    code = ErrorCode.insufficient_quota
    retry_after_seconds = 86_400

    def headers(self) -> list[tuple[bytes, bytes]]:
        # OpenAI's clients repeat a 429 within seconds unless this header forbids it.
        return [*super().headers(), (b"x-should-retry", b"false")]


class ModelNotAllowed(ApiError):
    """The API key may not use the model."""

    status = 403
    type = "permission_error"
    code = ErrorCode.model_not_allowed

    def __init__(self, name: str, allowed: Iterable[str]) -> None:
        super().__init__(
            f"This API key may not use the model {name!r}. Allowed: {', '.join(allowed) or 'none'}.", "model"
        )


class EngineUnavailable(RetryableError):
    """No engine can take the request now."""

    status = 503
    type = "server_error"
    code = ErrorCode.engine_unavailable
    retry_after_seconds = 2


class TooManyConnections(RetryableError):
    """The process has as many open connections as it may have."""

    status = 503
    type = "server_error"
    code = ErrorCode.too_many_connections
    retry_after_seconds = 2

    def __init__(self) -> None:
        super().__init__("The server has too many open connections. Try again soon.")


class ModelNotReady(EngineUnavailable):
    """The model is being started for the first time."""

    retry_after_seconds = 5

    def __init__(self, name: str, status: str) -> None:
        super().__init__(f"The model {name!r} is not ready yet: its deployment is {status}.")


class KeyCheckUnavailable(RetryableError):
    """The API key cannot be checked now."""

    status = 503
    type = "server_error"
    code = ErrorCode.database_unavailable

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            "The API key cannot be checked: the database is unavailable. Send the request again.",
            retry_after_seconds,
        )


class EngineCircuitOpen(EngineUnavailable):
    """The circuit breakers of all engines of the model are open."""

    def __init__(self, name: str, retry_after_seconds: int) -> None:
        super().__init__(
            f"The engine of {name!r} failed several times in a row and receives no requests for now. "
            f"Try again in {retry_after_seconds} s.",
            retry_after_seconds,
        )


class EngineDisconnected(ApiError):
    """The engine closed the connection in the middle of its response."""

    status = 502
    type = "server_error"
    code = ErrorCode.engine_disconnected

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The engine of {name!r} closed the connection before its response was complete. "
            "Send the request again."
        )


class ResponseTooLarge(ApiError):
    """The engine's response is larger than the gateway buffers."""

    status = 502
    type = "server_error"
    code = ErrorCode.response_too_large

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The response is larger than {max_bytes // 2**20} MiB. Request fewer tokens, or a stream."
        )


class EngineTimeout(ApiError):
    """The engine sent nothing for too long."""

    status = 504
    type = "server_error"
    code = ErrorCode.engine_timeout

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(f"The engine of {name!r} sent nothing for {seconds:.0f} s. Try again later.")


class InternalError(ApiError):
    """A fault of Tunesmith."""

    status = 500
    type = "server_error"
    code = ErrorCode.internal_error


class GenerationFailed(ApiError):
    """A completion could not be continued within its grammar."""

    status = 500
    type = "server_error"
    code = ErrorCode.generation_failed

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The completion cannot be continued within the grammar of the request: {reason}. Simplify the "
            "schema."
        )
