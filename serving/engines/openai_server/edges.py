"""What an engine checks before it reads a request: the page that sent it, the Host header, and the encoding.

An engine checks no key, so that web pages could use an engine on their visitor's machine: by its address, or
with a name of their own that they bind to its address, as if it were their own origin (DNS rebinding).
"""

import ipaddress
from collections.abc import Awaitable, Callable

from aiohttp import web

from serving.http.addresses import host_name
from serving.http.content_encoding import check_encoding, unpack_body
from serving.http.cross_site import OriginPolicy
from serving.http.errors import MalformedRequest, PermissionDenied

# The address of --host, which the gateway sends as the Host header.
OWN_HOST: web.AppKey[str] = web.AppKey("host", str)
ORIGINS = OriginPolicy()
CHECKED_HEADERS = ("host", "origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "content-encoding")


@web.middleware
async def check_edges(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Pass the request on; raises ApiError."""
    headers: dict[bytes, bytes] = {}
    for name in CHECKED_HEADERS:
        values = request.headers.getall(name, [])
        if len(values) > 1:
            raise MalformedRequest(f"The header {name} is repeated. Send it once.")
        if values:
            headers[name.encode()] = values[0].encode(errors="surrogateescape")
    ORIGINS.check(request.method, headers)
    _check_host(host_name(headers[b"host"]) if headers.get(b"host") else "", request.app[OWN_HOST])
    check_encoding(headers.get(b"content-encoding", b""))
    return await handler(request)


async def read_body(request: web.Request) -> bytes:
    """Return the body, unpacked if it is compressed; raises ApiError."""
    encoding = request.headers.get("content-encoding", "")
    return unpack_body(encoding.encode(errors="surrogateescape"), await request.read())


def _check_host(name: str, own_host: str) -> None:
    """Accept literal addresses, which no page can bind to a name of its own, and the engine's own name."""
    if name in ("", "localhost", own_host.lower()):
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise PermissionDenied(
            f"The header Host names {name!r}, but this engine listens on {own_host}. Use that address."
        ) from None
