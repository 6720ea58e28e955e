"""One signed POST to the URL of a webhook, over a connection to an address that was checked.

The name is resolved once, and the connection goes to the addresses that were checked, while TLS and the
header Host keep the name: a second resolution cannot lead elsewhere. httpcore2 follows no redirect, reads no
proxy from the environment and keeps no cookie.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpcore2

from app.webhooks.destination import AllowedHosts, DestinationRefused, parse_stored_url, resolve

# From the name's resolution to the last byte that is read.
TIMEOUT_SECONDS = 15.0
# Of the response, which is not kept: enough for the sender of a short one to see that it was read.
MAX_READ_BYTES = 16 * 1024
MAX_RETRY_AFTER_SECONDS = 6 * 3600


@dataclass(frozen=True)
class PostResult:
    """The outcome of one attempt: a status, or why there is none."""

    duration_seconds: float
    status_code: int | None = None
    error: str | None = None
    retry_after_seconds: float = 0.0

    @property
    def succeeded(self) -> bool:
        """Whether the receiver has accepted the message."""
        return self.status_code is not None and 200 <= self.status_code < 300


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    allowed: AllowedHosts,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> PostResult:
    """Send a body, and return the outcome within the timeout, unless resolving the name takes longer."""
    started = time.monotonic()
    backend = GuardedBackend(allowed)
    try:
        with backend.deadline(timeout_seconds):
            status, retry_after = _exchange(url, headers, body, backend, timeout_seconds)
    except DestinationRefused as error:
        reason = str(error)
    except (socket.gaierror, UnicodeError):
        reason = "The host name does not resolve."
    except httpcore2.TimeoutException:
        reason = f"The receiver did not respond within {timeout_seconds:g} s."
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
        reason = f"The request failed: {error}."[:300]
    else:
        refused = None if 200 <= status < 300 else f"The receiver responded with {status}."
        if 300 <= status < 400:
            refused = f"The receiver responded with {status}; redirects are not followed."
        return PostResult(time.monotonic() - started, status, refused, retry_after)
    return PostResult(time.monotonic() - started, error=reason)


class GuardedBackend(httpcore2.NetworkBackend):
    """A network backend that connects to checked addresses only, and ends all connections at a deadline."""

    def __init__(self, allowed: AllowedHosts) -> None:
        self._allowed = allowed
        self._backend = httpcore2.SyncBackend()
        self._sockets: list[socket.socket] = []
        self._is_over = threading.Event()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **options: Any
    ) -> httpcore2.NetworkStream:
        """Connect to the first address of the host that accepts; raises DestinationRefused and OSError."""
        failure: Exception = httpcore2.ConnectError("the host has no address")
        for address in resolve(host, port, self._allowed):
            # Each of many addresses may take the whole timeout.
            if self._is_over.is_set():
                break
            try:
                stream = self._backend.connect_tcp(address, port, timeout, *args, **options)
            except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
                continue
            # A duplicate, because TLS takes the socket over while its handshake still waits.
            self._sockets.append(stream.get_extra_info("socket").dup())
            if self._is_over.is_set():
                break
            return stream
        raise failure

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Shut the connections down after so many seconds, and raise ReadTimeout then.

        The timeouts of sockets limit each read alone: a receiver that sends a byte now and then would keep
        the sender forever.
        """
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            if self._is_over.is_set():
                raise httpcore2.ReadTimeout from None
            raise
        finally:
            timer.cancel()
            for connection in self._sockets:
                connection.close()

    def _end(self) -> None:
        self._is_over.set()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _exchange(
    url: str, headers: Mapping[str, str], body: bytes, backend: GuardedBackend, timeout_seconds: float
) -> tuple[int, float]:
    """Return the status of the response, and for how many seconds it asks to wait."""
    destination = parse_stored_url(url)
    requested = httpcore2.URL(
        scheme=destination.scheme.encode(),
        host=destination.host.encode(),
        port=destination.port,
        target=destination.target.encode(),
    )
    all_headers = {"Host": destination.authority, "Content-Length": str(len(body)), **headers}
    limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout_seconds)
    with (
        httpcore2.HTTPConnection(
            requested.origin, ssl_context=_ssl_context(), network_backend=backend
        ) as connection,
        connection.stream(
            "POST", requested, headers=list(all_headers.items()), content=body, extensions={"timeout": limits}
        ) as response,
    ):
        _discard(response.iter_stream())
        return response.status, _read_retry_after(response.headers)


def _discard(parts: Iterable[bytes]) -> None:
    size = 0
    for part in parts:
        size += len(part)
        if size > MAX_READ_BYTES:
            return


def _read_retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float:
    value = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    return float(min(int(value), MAX_RETRY_AFTER_SECONDS)) if value.isdigit() and len(value) < 10 else 0.0


@lru_cache
def _ssl_context() -> ssl.SSLContext:
    return httpcore2.default_ssl_context()
