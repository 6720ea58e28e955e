"""Requests to a judge model: repeated while the endpoint is busy; the errors differ by who must act."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from trainers.configs.metrics.judge import JudgeConfig
from trainers.metrics.judge.prompts import Messages
from trainers.runtime.endpoints import METER, Endpoint
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError
from trainers.runtime.redaction import redact

TIMEOUT_SECONDS = 180.0
# Doubled for each repetition; an endpoint that asks for more by Retry-After gets up to a minute.
RETRY_SECONDS = 1.0
MAX_RETRIES = 4
MAX_WAIT_SECONDS = 60.0
MAX_ERROR_CHARACTERS = 500
COUNTS = ("prompt_tokens", "completion_tokens")
# Whatever the row, these statuses would repeat: the key, the address or the model's name is wrong.
_SETTING_STATUSES = {401, 402, 403, 404, 405}
_BUSY_STATUSES = {408, 409, 425, 429}


class JudgeFailed(ProgramError):
    """The judge did not judge enough of the rows."""

    code = ErrorCode.judge_failed


class JudgementMissing(Exception):
    """The judge gave no answer to one request; the message is the reason."""


class RequestRejected(JudgementMissing):
    """The endpoint rejected a request that it would reject again."""


class NoResponse(JudgementMissing):
    """The endpoint did not respond, or was still busy or failing at the last try."""


class AnswerRefused(JudgementMissing):
    """The model refused to answer."""


class AnswerTruncated(JudgementMissing):
    """The answer is cut off by the limit of its tokens."""


@dataclass(frozen=True)
class JudgeAnswer:
    """The text of a judge's answer, and what the endpoint reports about it."""

    text: str
    model: str = ""
    """The model that the endpoint reports, which may be more exact than the one that was asked for."""
    usage: Mapping[str, int] = field(default_factory=dict)
    is_truncated: bool = False
    """Whether the limit of tokens cut it off."""


class EndpointClient:
    """A client of one OpenAI-compatible endpoint, for use by several threads."""

    def __init__(self, title: str, endpoint: Endpoint, max_connections: int) -> None:
        self._title = title
        self._endpoint = endpoint
        limits = httpx2.Limits(max_connections=max_connections)
        # Redirects are not followed: a key must not reach another host.
        self._http = httpx2.Client(timeout=TIMEOUT_SECONDS, limits=limits, follow_redirects=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def post(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        """Return the response to a request about the endpoint's model, which is repeated while it is busy.

        Raises:
            RequestRejected: The endpoint would reject this request again.
            NoResponse: It does not respond, or is still busy after the last try.
            JudgeFailed: It would reject any request, such as for a key that is not valid.
        """
        url = f"{self._endpoint.base_url}/{path}"
        body = {"model": self._endpoint.model, **body}
        for attempt in range(MAX_RETRIES + 1):
            try:
                response = self._http.post(url, json=body, headers=self._endpoint.headers)
            except httpx2.TransportError as error:
                reason, wait = f"no response: {error or type(error).__name__}", 0.0
            else:
                if response.is_success:
                    METER.add(response)
                    return response
                reason, wait = self._explain(response), _retry_after(response)
            if attempt < MAX_RETRIES:
                time.sleep(min(MAX_WAIT_SECONDS, max(wait, RETRY_SECONDS * 2**attempt)))
        raise NoResponse(reason)

    def chat(self, body: Mapping[str, Any]) -> JudgeAnswer:
        """Return the answer to a chat; raises as `post`, AnswerRefused or AnswerTruncated."""
        return _read_answer(self.post("chat/completions", body))

    def _explain(self, response: httpx2.Response) -> str:
        """Return why a request should be repeated; raises the errors of one that should not."""
        status = response.status_code
        reason = redact(f"status {status}: {response.text[:MAX_ERROR_CHARACTERS]}")
        if status in _SETTING_STATUSES or response.is_redirect:
            raise JudgeFailed(
                f"The {self._title} rejects every request: {reason}",
                "Check address and key in TUNESMITH_EVALUATION_ENDPOINTS, and the name of the model.",
            )
        if status < 500 and status not in _BUSY_STATUSES:
            raise RequestRejected(reason)
        return reason


class JudgeClient(EndpointClient):
    """A client of one judge model, for use by several threads."""

    def __init__(self, config: JudgeConfig, endpoint: Endpoint) -> None:
        super().__init__(f"judge {config.judge}", endpoint, config.concurrency)
        self._config = config

    def ask(self, messages: Messages) -> JudgeAnswer:
        """Return the judge's answer; raises as `chat`."""
        body: dict[str, Any] = {
            "messages": messages,
            "max_completion_tokens": self._config.max_completion_tokens,
        }
        if self._config.temperature is not None:
            body["temperature"] = self._config.temperature
        if self._config.json_mode:
            body["response_format"] = {"type": "json_object"}
        return self.chat(body)


def _read_answer(response: httpx2.Response) -> JudgeAnswer:
    try:
        content = response.json()
        choice = content["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NoResponse(f"not a chat completion: {response.text[:MAX_ERROR_CHARACTERS]}") from None
    if refusal or reason == "content_filter":
        raise AnswerRefused(f"refused: {str(refusal or reason)[:MAX_ERROR_CHARACTERS]}")
    if not isinstance(text, str) or not text.strip():
        error = AnswerTruncated if reason == "length" else JudgementMissing
        raise error(f"an empty answer (finish_reason {reason})")
    usage = content.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens = {name: count for name in COUNTS if type(count := usage.get(name)) is int}
    return JudgeAnswer(text, str(content.get("model") or ""), tokens, is_truncated=reason == "length")


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
