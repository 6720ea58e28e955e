"""Requests to OpenAI's API: paced, repeated where that helps, and ended where it does not.

OpenAI documents its errors at https://platform.openai.com/docs/guides/error-codes: 429 is a limit of rate, or
a quota that waiting does not bring back (`insufficient_quota`).
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2

from trainers.openai_account.pace import Pace, read_exhaustion, read_retry_after
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, ProgramError

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"
# A reasoning model may take minutes for a response.
READ_SECONDS, CONNECT_SECONDS = 600.0, 15.0
MAX_FAILURES, MAX_LIMITED = 8, 60
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
MAX_QUOTED_CHARACTERS = 1000
# OpenAI's bound for a file of a fine-tuning job is 512 MB.
MAX_FILE_BYTES = 1 << 30
RATE_LIMITED = "status 429 (rate limit)"
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
REFUSED_STATUSES = frozenset({401, 403})
REPEATED_STATUSES = frozenset({408, 409})
NEVER_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
)

logger = logging.getLogger("trainers")


class AccountRefused(ProgramError):
    """OpenAI refuses the key, the quota or the permission: to repeat the request does not help."""

    code = ErrorCode.openai_refused


class AccountUnavailable(ProgramError):
    """OpenAI does not respond, or responds with errors, for too long."""

    code = ErrorCode.openai_unavailable


class AccountObjectMissing(AccountRefused):
    """OpenAI has no model or file with this name."""


@dataclass(frozen=True)
class Reply:
    """A response, or an error that concerns the request alone."""

    status: int
    body: dict[str, Any]
    request_id: str | None = None

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object; empty for a success."""
        error = self.body.get("error") if self.status >= 400 else None
        return error if isinstance(error, dict) else {}


class AccountClient:
    """A client that threads share; `close` ends its connections."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        pace: Pace,
        read_seconds: float = READ_SECONDS,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        """Create a client that gives up after so many failures of one request.

        An empty address is OpenAI's. Raises ConfigInvalid without a key, or for one that no header can have.
        """
        # A file with a secret often ends with a newline.
        api_key = api_key.strip()
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            raise ConfigInvalid(
                f"{KEY_VARIABLE} is not set, or has characters that no key has.",
                "Set it to a key of the organization that has the models.",
            )
        self.pace = pace
        self._max_failures = max_failures
        self._base_url = (base_url.strip() or DEFAULT_URL).rstrip("/")
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(read_seconds, connect=CONNECT_SECONDS),
            headers={"Authorization": f"Bearer {api_key}"},
            # To the store of files; the key is not sent to another host.
            follow_redirects=True,
        )

    @classmethod
    def from_environment(cls, pace: Pace) -> Self:
        """Return a client with the key and the address in the environment; raises ConfigInvalid."""
        return cls(os.environ.get(URL_VARIABLE, ""), os.environ.get(KEY_VARIABLE, ""), pace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return an object.

        Raises:
            AccountObjectMissing: There is none.
            AccountRefused: OpenAI refuses the request.
            AccountUnavailable: OpenAI does not respond.
        """
        reply = self._send(lambda: self._read("GET", path, params=dict(parameters or {})))
        if reply.status >= 400:
            raise AccountRefused(f"OpenAI refuses GET {path}: {describe_error(reply)}")
        return reply.body

    def list_pages(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of a list, over all its pages; raises as `get`."""
        after: str | None = None
        while True:
            page = self.get(path, {"limit": 100} | ({"after": after} if after is not None else {}))
            items = [item for item in page.get("data") or [] if isinstance(item, dict)]
            yield from items
            if not page.get("has_more") or not items or items[-1].get("id") in (None, after):
                return
            after = items[-1]["id"]

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        before_send: Callable[[], None] = lambda: None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Send a request; an error that concerns it alone, such as 400, is returned.

        `before_send` is called when the pace allows the request, and before each repetition; `on_loss` when
        the connection breaks off after OpenAI may have computed a response. Raises as `get`.
        """

        def exchange() -> tuple[Reply, Mapping[str, str]]:
            before_send()
            return self._read("POST", path, json=body)

        return self._send(exchange, on_loss)

    def download(self, path: str, target: Path) -> None:
        """Write the bytes of a file to `target`; raises as `get`."""
        reply = self._send(lambda: self._download(path, target))
        if reply.status >= 400:
            raise AccountRefused(f"OpenAI refuses GET {path}: {describe_error(reply)}")

    def _read(self, method: str, path: str, **content: Any) -> tuple[Reply, Mapping[str, str]]:
        response = self._client.request(method, self._base_url + path, **content)
        return _make_reply(response), response.headers

    def _download(self, path: str, target: Path) -> tuple[Reply, Mapping[str, str]]:
        with self._client.stream("GET", self._base_url + path) as response:
            if response.status_code != 200:
                response.read()
                return _make_reply(response), response.headers
            size = 0
            with target.open("wb") as file:
                for part in response.iter_bytes():
                    size += len(part)
                    if size > MAX_FILE_BYTES:
                        raise AccountRefused(f"The file at {path} has more than {MAX_FILE_BYTES:,} bytes.")
                    file.write(part)
        return Reply(200, {}), response.headers

    def _send(
        self,
        exchange: Callable[[], tuple[Reply, Mapping[str, str]]],
        on_loss: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Return the reply to a request, which is repeated until it is not a failure of OpenAI's side."""
        n_failures = n_limited = 0
        while True:
            self.pace.wait()
            with _name_failure() as failure:
                reply, headers = exchange()
                failure.reason = _find_failure(reply)
            if failure.reason is None:
                self.pace.hold(read_exhaustion(headers))
                return reply
            if failure.is_loss:
                on_loss()
            is_limited = failure.reason == RATE_LIMITED
            n_limited, n_failures = n_limited + is_limited, n_failures + (not is_limited)
            if n_failures >= self._max_failures or n_limited >= MAX_LIMITED:
                raise AccountUnavailable(
                    f"OpenAI does not respond: {failure.reason}, {n_failures + n_limited} times.",
                    "See https://status.openai.com, and retry the run: what is recorded is kept.",
                )
            asked = read_retry_after(headers) if failure.has_response else None
            backoff = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** (n_failures + n_limited - 1))
            logger.info("OpenAI: %s; waiting for %.1f s", failure.reason, backoff if asked is None else asked)
            if is_limited:
                self.pace.hold(max(backoff if asked is None else asked, read_exhaustion(headers)))
            else:
                self.pace.sleep(min(MAX_BACKOFF_SECONDS, backoff if asked is None else asked))


@dataclass
class _Failure:
    reason: str | None = None
    has_response: bool = True
    is_loss: bool = False


@contextmanager
def _name_failure() -> Iterator[_Failure]:
    """Yield a failure, which gets a reason if the connection breaks, also in the middle of a response."""
    failure = _Failure()
    try:
        yield failure
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        # The message may contain the address of a proxy; the kind of the failure says enough.
        failure.reason, failure.has_response = type(error).__name__, False
        failure.is_loss = not isinstance(error, NEVER_SENT)


def _find_failure(reply: Reply) -> str | None:
    """Return why the request must be repeated, or None; raises AccountRefused."""
    code = str(reply.error.get("code") or reply.error.get("type") or "")
    if code in QUOTA_CODES:
        raise AccountRefused(
            f"OpenAI's account has no quota left: {describe_error(reply)}",
            "Add credit, or raise the budget of the project, and retry the run: what is recorded is kept.",
        )
    if reply.status in REFUSED_STATUSES:
        raise AccountRefused(
            f"OpenAI refuses the key: {describe_error(reply)}",
            f"Set {KEY_VARIABLE} on the worker to a key that may read fine-tuning jobs and files and use "
            "models, restart it, and retry the run: what is recorded is kept.",
        )
    if reply.status == 404:
        raise AccountObjectMissing(f"OpenAI has no such object: {describe_error(reply)}")
    if reply.status == 429:
        return RATE_LIMITED
    if reply.status >= 500 or reply.status in REPEATED_STATUSES:
        return f"status {reply.status}"
    return None


def describe_error(reply: Reply) -> str:
    """Return status, code and message of an error."""
    code, message = reply.error.get("code"), str(reply.error.get("message") or "no message")
    return f"{message[:MAX_QUOTED_CHARACTERS]} (status {reply.status}{f', {code}' if code else ''})"


def _make_reply(response: httpx2.Response) -> Reply:
    try:
        body = response.json()
    except ValueError:
        # A proxy's error page, or a response that was cut off.
        body = None
    is_broken = response.status_code < 400 and not isinstance(body, dict)
    status = 502 if is_broken else response.status_code
    return Reply(status, body if isinstance(body, dict) else {}, response.headers.get("x-request-id"))
