"""Protection against web pages of other origins, and the headers (CORS) for those that are allowed.

A browser sends requests from any page to any address that its user can reach, among them this service, which
needs no key on the user's own machine. It marks them: `Sec-Fetch-Site` says whether the page has the same
origin, and `Origin` names it. Clients other than browsers send neither.
"""

from collections.abc import Iterable, Mapping

from serving.http.addresses import host_name
from serving.http.errors import ApiError
from trainers.runtime.error_codes import ErrorCode

Headers = list[tuple[bytes, bytes]]

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
# Response headers that a page may read, in addition to the content type.
EXPOSED_HEADERS = (
    b"accept-ranges, content-disposition, content-range, etag, retry-after, retry-after-ms, "
    b"x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens, x-request-id, "
    b"x-should-retry"
)
PREFLIGHT_SECONDS = 600
DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


class CrossSiteRequest(ApiError):
    """A page of another origin sent the request."""

    status = 403
    type = "permission_error"
    code = ErrorCode.cross_site_request

    def __init__(self, origin: bytes | None) -> None:
        sender = f"the web page {origin.decode('latin-1')}" if origin else "a web page of another origin"
        super().__init__(
            f"The request was sent by {sender}, which is not allowed. "
            "List its origin in TUNESMITH_ALLOWED_ORIGINS, or in --allow-origin of a standalone gateway."
        )


def parse_origin(origin: str) -> str:
    """Return an origin as browsers send it. Raises ValueError for anything else, such as `*` or `null`."""
    scheme, separator, authority = origin.strip().rstrip("/").lower().partition("://")
    if not separator or not scheme.isalnum() or not authority or set(authority) & set("/*@?# "):
        raise ValueError(f"{origin!r} is not an origin: write it as https://chat.example, without a path")
    return f"{scheme}://{authority}"


class OriginPolicy:
    """The origins other than its own whose pages may use a server."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self.allowed = frozenset(parse_origin(origin).encode() for origin in allowed)

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Check the headers that a page cannot forge.

        Raises:
            InvalidHost: The Host header is more than a name and a port.
            CrossSiteRequest: A page of an origin that is not allowed sent the request.
        """
        host = headers.get(b"host", b"")
        if host:
            host_name(host)
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if (origin is None and site is None) or origin in self.allowed or site == b"same-origin":
            return
        # A proxy may change the Host header, but then `Sec-Fetch-Site` still says `same-origin`.
        if site in (None, b"none") and (origin is None or _is_own(origin, host)):
            return
        if not _is_link(method, headers):
            raise CrossSiteRequest(origin)

    def preflight_headers(self, headers: Mapping[bytes, bytes]) -> Headers | None:
        """Return the headers of the response to a preflight request, or None for another OPTIONS."""
        if headers.get(b"origin") not in self.allowed or b"access-control-request-method" not in headers:
            return None
        response = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
        ]
        if requested := headers.get(b"access-control-request-headers"):
            response.append((b"access-control-allow-headers", requested))
        if b"access-control-request-private-network" in headers:
            response.append((b"access-control-allow-private-network", b"true"))
        return response

    def response_headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Return the headers to add to the response to a request with these headers.

        Keys are sent as a header, so cookies and the like (`Access-Control-Allow-Credentials`) are never
        allowed.
        """
        if not self.allowed:
            return []
        origin = headers.get(b"origin")
        vary = (b"vary", b"Origin")
        if origin is None or origin not in self.allowed:
            return [vary]
        return [
            vary,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
        ]


def _is_own(origin: bytes, host: bytes) -> bool:
    """Return True if the origin is that of the server, whose scheme a proxy with TLS may have changed."""
    scheme, _, authority = origin.lower().partition(b"://")
    port = DEFAULT_PORTS.get(scheme, b"")
    return bool(port) and authority.removesuffix(port) == host.lower().removesuffix(port)


def _is_link(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Return True if the user followed a link: the page that contains it cannot read the response."""
    return (
        method in ("GET", "HEAD")
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )
