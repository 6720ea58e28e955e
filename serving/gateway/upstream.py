"""The connection to an engine: a seam, so that a faster client can take its place."""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import aiohttp

CONNECT_SECONDS = 5.0
# A long prompt on a slow engine may take minutes to its first token.
SILENCE_SECONDS = 600.0
CHUNK_BYTES = 64 * 1024


class UpstreamUnreachable(Exception):
    """No byte came back: the connection was refused, or closed before the answer."""


class UpstreamBroken(Exception):
    """The answer broke off after its first byte."""


class UpstreamSilent(Exception):
    """Nothing came for SILENCE_SECONDS."""


class UpstreamAnswer(Protocol):
    """An answer whose status has come and whose body is on its way."""

    status: int
    headers: Mapping[str, str]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises UpstreamBroken and UpstreamSilent."""

    def close(self) -> None:
        """Let go of the connection; an unfinished answer is given up, which makes the engine stop."""


class Upstream(Protocol):
    """A client of engines."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> UpstreamAnswer:
        """Send a request and wait for the answer's status; raises UpstreamUnreachable and UpstreamSilent."""

    async def aclose(self) -> None:
        """Close all connections."""


class AiohttpAnswer:
    """An answer of aiohttp's client."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.response.content.iter_any():
                yield chunk
        except TimeoutError as fault:
            raise UpstreamSilent(str(fault)) from fault
        except (aiohttp.ClientError, OSError) as fault:
            raise UpstreamBroken(str(fault)) from fault

    def close(self) -> None:
        # A finished answer has handed its connection back already; closing then does nothing.
        self.response.close()


class AiohttpUpstream:
    """One pool of kept-alive connections; made at the first request, inside the running event loop."""

    def __init__(self) -> None:
        self.session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> UpstreamAnswer:
        if self.session is None:
            self.session = make_session()
        try:
            return AiohttpAnswer(
                await self.session.post(url, data=body, headers=headers, allow_redirects=False)
            )
        except aiohttp.ConnectionTimeoutError as fault:
            raise UpstreamUnreachable(str(fault)) from fault
        except TimeoutError as fault:
            raise UpstreamSilent(str(fault)) from fault
        except (aiohttp.ClientError, OSError) as fault:
            raise UpstreamUnreachable(str(fault)) from fault

    async def aclose(self) -> None:
        if self.session is not None:
            await self.session.close()


def make_session() -> aiohttp.ClientSession:
    """A session without a limit of its own on connections: the engine decides what waits."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
        timeout=timeout,
        read_bufsize=CHUNK_BYTES,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
