"""Errors of engines that are not in the form of this API: those of vLLM, SGLang and web frameworks."""

import json
import re
from typing import Any

from serving.gateway.request_body import ALLOWED_FIELDS
from serving.http.errors import ApiError, UnknownUrl
from trainers.runtime.error_codes import ErrorCode

MAX_ENGINE_ERROR_BYTES = 500
# A longer one is not decoded.
MAX_DECODED_BYTES = 2**16
CONTEXT_LENGTH = re.compile(r"maximum context length|longer than the model's context length")
MAX_TOKENS = re.compile(r"cannot be greater than max_model_len|is too large")
FIRST_NAME = re.compile(r"[`'\"]?(\w+)")
# What vLLM calls the prompt of any endpoint.
PROMPT_PARAMS = frozenset({"input_text", "input_tokens", "prompt_token_ids"})
PROMPT_FIELDS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
CODES = {
    404: ErrorCode.model_not_found,
    413: ErrorCode.request_too_large,
    429: ErrorCode.rate_limit_exceeded,
}


class EngineErrorResponse(ApiError):
    """The engine responded with an error, whose status it keeps."""

    def __init__(
        self, message: str, status: int, code: ErrorCode = ErrorCode.engine_error, param: str | None = None
    ) -> None:
        super().__init__(message, param)
        self.status = status
        self.code = code
        self.type = "server_error" if status >= 500 else "invalid_request_error"


def describe_engine_error(
    name: str, path: str, status: int, retry_after: bytes, content: bytes
) -> ApiError | None:
    """Return the error of a response with this status; None if it is in the form of this API already.

    vLLM's errors have the status as their code, by which no client can tell a conversation that is too long
    from any other fault.
    """
    found = _decode_error(content)
    if found is not None and isinstance(found.get("code"), str):
        return None
    if found is not None and isinstance(message := found.get("message"), str):
        code, param = _find_code(status, message), _find_param(path, found.get("param"), message)
        error = EngineErrorResponse(message, status, code, param)
    elif status == UnknownUrl.status:
        return UnknownUrl(f"The engine of {name!r} does not serve {path}.")
    else:
        details = content[:MAX_ENGINE_ERROR_BYTES].decode("utf-8", "replace").strip() or "no details"
        error = EngineErrorResponse(
            f"The engine of {name!r} responded with status {status}: {details}", status
        )
    error.retry_after_seconds = float(retry_after) if retry_after.isdigit() else None
    return error


def _decode_error(content: bytes) -> dict[str, Any] | None:
    if len(content) > MAX_DECODED_BYTES or b'"error"' not in content:
        return None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else None


def _find_code(status: int, message: str) -> ErrorCode:
    if status in CODES or status >= 500:
        return CODES.get(status, ErrorCode.engine_error)
    if CONTEXT_LENGTH.search(message):
        return ErrorCode.context_length_exceeded
    return ErrorCode.max_tokens_too_large if MAX_TOKENS.search(message) else ErrorCode.invalid_request


def _find_param(path: str, param: Any, message: str) -> str | None:
    """Return the field of the request that an error names, or with which its message begins."""
    if param in PROMPT_PARAMS:
        return PROMPT_FIELDS.get(path, "input")
    if isinstance(param, str) and param:
        return param.removeprefix("body.").partition(".")[0]
    first = FIRST_NAME.match(message)
    return first[1] if first and first[1] in ALLOWED_FIELDS[path] else None
