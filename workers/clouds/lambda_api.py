"""Requests to Lambda's API: paced, bounded, and with its errors as those of our protocol.

Lambda's API v1.10: https://docs.lambda.ai/api/cloud. `error.code` decides what an error means, since a proxy
in front of the API has statuses and pages of its own.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2

from trainers.runtime.redaction import redact
from workers.clouds.accounts import LambdaAccount
from workers.clouds.protocol import CloudError, CloudErrorKind

CONNECT_SECONDS, READ_SECONDS = 3.0, 15.0
MAX_RESPONSE_BYTES = 8 << 20
MAX_MESSAGE_CHARACTERS = 500
# Lambda's limits.
REQUEST_SECONDS, LAUNCH_SECONDS = 1.0, 12.0
MISSING = "global/object-does-not-exist"
DUPLICATE = "global/duplicate"
KINDS = {
    "instance-operations/launch/insufficient-capacity": CloudErrorKind.no_capacity,
    "global/quota-exceeded": CloudErrorKind.quota_exceeded,
    "global/invalid-api-key": CloudErrorKind.unauthorized,
    "global/account-inactive": CloudErrorKind.unauthorized,
    "global/invalid-address": CloudErrorKind.unauthorized,
    "global/invalid-parameters": CloudErrorKind.invalid_request,
    "global/internal-error": CloudErrorKind.unreachable,
}


class LambdaRefused(CloudError):
    """Lambda's response is an error with a code."""

    def __init__(self, kind: CloudErrorKind, message: str, refusal: str) -> None:
        super().__init__(kind, message)
        self.refusal = refusal


class LambdaApi:
    """The connection of one account; threads share it."""

    def __init__(
        self,
        account: LambdaAccount,
        request_seconds: float = REQUEST_SECONDS,
        launch_seconds: float = LAUNCH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Create a connection that keeps the seconds between two requests, and between two launches."""
        self._request_seconds, self._launch_seconds = request_seconds, launch_seconds
        self._clock, self._sleep = clock, sleep
        self._next_request = self._next_launch = clock()
        self._lock = threading.Lock()
        self._url = account.url
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            headers={"Authorization": f"Bearer {account.api_key}", "Accept": "application/json"},
            # A redirect would carry the key to another address.
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """Return the `data` of a response; raises CloudError."""
        return self._exchange("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request and return the `data` of its response; raises CloudError."""
        return self._exchange("POST", path, body)

    def reserve_launch(self) -> None:
        """Count a launch; raises CloudError `rate_limited` if the last one is too recent."""
        with self._lock:
            seconds = self._next_launch - self._clock()
            if seconds > 0:
                message = f"Lambda: one launch in {self._launch_seconds:.0f} s is allowed."
                raise CloudError(CloudErrorKind.rate_limited, message, seconds)
            # The request itself may be sent this much later than counted.
            self._next_launch = self._clock() + self._launch_seconds + self._request_seconds

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        self._wait()
        try:
            with self._client.stream(method, self._url + path, json=body) as response:
                content = self._read(response)
        except httpx2.HTTPError as error:
            # The message may contain the address of a proxy; the kind of the failure says enough.
            message = f"Lambda: {method} {path}: no response ({type(error).__name__})."
            raise CloudError(CloudErrorKind.unreachable, message) from None
        return _find_data(f"Lambda: {method} {path}", response, content)

    def _read(self, response: httpx2.Response) -> bytes:
        """Return the body, if it is neither too large nor too slow to be Lambda's own."""
        parts, size, deadline = [], 0, self._clock() + READ_SECONDS
        for part in response.iter_bytes():
            size += len(part)
            if size > MAX_RESPONSE_BYTES or self._clock() > deadline:
                message = f"Lambda: the response has not ended after {size:,} bytes."
                raise CloudError(CloudErrorKind.unreachable, message)
            parts.append(part)
        return b"".join(parts)

    def _wait(self) -> None:
        """Wait until a request may be sent."""
        with self._lock:
            now = self._clock()
            at = max(self._next_request, now)
            self._next_request = at + self._request_seconds
        if at > now:
            self._sleep(at - now)


def _find_data(action: str, response: httpx2.Response, content: bytes) -> Any:
    """Return the `data` of a success; raises CloudError for everything else."""
    try:
        reply = json.loads(content)
    except ValueError:
        reply = None
    reply = reply if isinstance(reply, dict) else {}
    if response.status_code == 429:
        message = f"{action}: too many requests."
        raise CloudError(CloudErrorKind.rate_limited, message, _read_retry_after(response))
    error = reply.get("error")
    if isinstance(error, dict):
        code = str(error.get("code"))
        message = redact(f"{action}: {code}: {error.get('message')} {error.get('suggestion') or ''}".strip())
        kind = KINDS.get(code) or _find_kind(response.status_code)
        raise LambdaRefused(kind, message[:MAX_MESSAGE_CHARACTERS], code)
    if response.status_code == 200 and "data" in reply:
        return reply["data"]
    kind = _find_kind(response.status_code)
    raise CloudError(kind, f"{action}: status {response.status_code} without an error that can be read.")


def _find_kind(status: int) -> CloudErrorKind:
    if status in (401, 403):
        return CloudErrorKind.unauthorized
    # A redirect, or a success that cannot be read, may follow an effect.
    return CloudErrorKind.invalid_request if 400 <= status < 500 else CloudErrorKind.unreachable


def _read_retry_after(response: httpx2.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return LAUNCH_SECONDS
    return min(max(seconds, REQUEST_SECONDS), 3600.0) if seconds == seconds else LAUNCH_SECONDS
