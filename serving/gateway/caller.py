"""Who asks the gateway, whichever server they came through."""

from typing import Protocol

Headers = list[tuple[bytes, bytes]]


class InFlightRequest(Protocol):
    """Work for a client, which it may slow down or give up."""

    def cancel(self) -> object: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Downstream(Protocol):
    """Who asked: gets one `whole` answer, or `begin`, then `send` for each chunk, then `finish`."""

    job: InFlightRequest | None

    def whole(self, status: int, headers: Headers, body: bytes) -> None: ...

    def begin(self, status: int, headers: Headers, chunk: bytes) -> None: ...

    def send(self, chunk: bytes) -> None: ...

    def finish(self, chunk: bytes) -> None: ...
