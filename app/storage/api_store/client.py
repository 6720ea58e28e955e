"""Requests to the endpoints of artifacts, repeated while the API is away, with errors as OSErrors."""

import errno
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from app.storage.api_store.trust import create_trust
from app.storage.remote.errors import StoreCredentialsRefused, StoreUnreachable
from serving.http.addresses import is_loopback
from trainers.runtime.error_codes import ErrorCode

PREFIX = "/api/v1/artifacts"
SCHEMES = ("api+http", "api+https")
# The last bytes of a file are answered after its hash was computed.
TIMEOUT = httpx2.Timeout(60, connect=10, read=600)
WAIT_SECONDS = (0.5, 1, 2, 5, 10)
RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
KEY_HINT = (
    "Set TUNESMITH_WORKER_KEY on this host to a key with the scope worker, which "
    "`python -m app keys create --scope worker` prints"
)

logger = logging.getLogger(__name__)


class UploadRejected(OSError):
    """The API refuses these bytes; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ArtifactsApi:
    """The endpoints of artifacts at one address; `transport` replaces the network's.

    `ca_file` has the authority that signs the certificate of the API, if it is not one of the system's.
    """

    def __init__(
        self,
        url: str,
        key: str,
        transport: httpx2.BaseTransport | None = None,
        ca_file: Path | None = None,
    ) -> None:
        base = parse_api_url(url)
        host = urlsplit(base).hostname or ""
        if base.startswith("http://") and not is_loopback(host):
            logger.warning("the key of this worker and its artifacts travel unencrypted to %s", base)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.address = base
        self._client = httpx2.Client(
            base_url=base + PREFIX,
            headers=headers,
            timeout=TIMEOUT,
            transport=transport,
            verify=create_trust(ca_file),
            # A proxy of the environment does not lead to this host's own tunnel.
            trust_env=not is_loopback(host),
        )

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Return a successful response; what may succeed later is repeated."""
        for seconds in WAIT_SECONDS:
            try:
                return self._send(method, path, **options)
            except StoreCredentialsRefused:
                raise
            except StoreUnreachable as error:
                logger.info("repeated in %s s: %s", seconds, error)
                time.sleep(seconds)
        return self._send(method, path, **options)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check(self) -> None:
        """Raise what is wrong with the address or the key now."""
        self._send("GET", f"/uploads/{'0' * 64}")

    @contextmanager
    def stream(self, path: str, start: int) -> Iterator[httpx2.Response]:
        """Yield the response with a file from an offset on; it is not repeated."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._errors(), self._client.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                response.read()
                self._raise(response)
            yield response

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with self._errors():
            response = self._client.request(method, path, **options)
        if not response.is_success:
            self._raise(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            reason = f"{type(error).__name__}: {error}"
            raise StoreUnreachable(f"the API at {self.address} does not respond: {reason}") from error

    def _raise(self, response: httpx2.Response) -> None:
        code, message = _read_error(response)
        if response.status_code in (401, 403):
            raise StoreCredentialsRefused(
                f"the API at {self.address} refuses the key of this host ({message}). {KEY_HINT}."
            )
        if code == ErrorCode.artifact_not_found:
            raise FileNotFoundError(message)
        if code == ErrorCode.disk_full:
            raise OSError(errno.ENOSPC, f"the disk of the control plane's artifact store is full: {message}")
        if response.status_code in RETRIED_STATUSES or code == ErrorCode.upload_busy:
            raise StoreUnreachable(f"the API at {self.address} cannot take the request now: {message}")
        raise UploadRejected(code, f"the API at {self.address} refuses the request: {message}")


def parse_api_url(url: str) -> str:
    """Return the address of the API in an URL such as `api+https://control:8000`; raises ValueError."""
    parts = urlsplit(url)
    is_plain = not parts.query and not parts.fragment and "@" not in parts.netloc
    if parts.scheme not in SCHEMES or not parts.hostname or not is_plain or parts.path not in ("", "/"):
        raise ValueError("write api+https://HOST:PORT, with the key in TUNESMITH_WORKER_KEY")
    return f"{parts.scheme.removeprefix('api+')}://{parts.netloc}"


def file_path(key: str) -> str:
    """Return the path of a published file below the prefix."""
    return f"/files/{quote(key)}"


def _read_error(response: httpx2.Response) -> tuple[str, str]:
    """Return the code and message of an error; of a proxy's, its status."""
    try:
        error = response.json()["error"]
        return str(error["code"]), str(error["message"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return "", f"status {response.status_code}"
