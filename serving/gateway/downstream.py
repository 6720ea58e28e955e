"""The client's side of the gateway: its requests, its identity, and the interface that responses go to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from serving.gateway.rate_limits import AuthorizedClient
from serving.http.addresses import is_forwarded

Headers = list[tuple[bytes, bytes]]
JSON_HEADERS: Headers = [(b"content-type", b"application/json")]


class ClientIdentity(NamedTuple):
    """The parts of a request that identify the client."""

    authorization: bytes | None
    host: bytes
    address: str
    forwarded: bool = False
    """Whether a reverse proxy sent the request on behalf of another client."""

    def token(self) -> str | None:
        """Return the bearer token, or None."""
        scheme, _, token = (self.authorization or b"").decode("latin-1").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None


@dataclass(slots=True)
class GatewayRequest:
    """A complete request. Header names are in lower case; the path includes /v1."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    address: str
    body: bytes
    client: AuthorizedClient | None = None
    """The client, if the parent application has authorized it in another way than by its headers."""

    def identity(self) -> ClientIdentity:
        """Return the client's identity."""
        return client_identity(self.headers, self.address)


class InFlightRequest(Protocol):
    """A request in progress, which the client's side can pause and cancel."""

    def cancel(self) -> object: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Downstream(Protocol):
    """The client's side of a response.

    A server calls either `respond` once, or `start`, then `write` for each chunk, then `finish`.
    """

    in_flight: InFlightRequest | None

    def respond(self, status: int, headers: Headers, body: bytes) -> None: ...

    def start(self, status: int, headers: Headers, chunk: bytes) -> None: ...

    def write(self, chunk: bytes) -> None: ...

    def finish(self, chunk: bytes) -> None: ...


def client_identity(headers: Mapping[bytes, bytes], address: str) -> ClientIdentity:
    """Return the identity of the client that sent these headers."""
    return ClientIdentity(
        headers.get(b"authorization"), headers.get(b"host", b""), address, is_forwarded(headers)
    )
