"""What the API checks and changes at its edge: pages of other origins, compressed bodies, HEAD and CORS."""

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.error_responses import error_response_of, headers_of
from app.http.middleware import OPENAI_PREFIX
from serving.gateway.mounted.asgi import ClientDisconnected, add_headers, read_body
from serving.http.content_encoding import check_encoding, unpack_body
from serving.http.cross_site import OriginPolicy
from serving.http.errors import ApiError, UnsupportedEncoding

HEADERS = [
    # A page in a frame could be clicked by a user who sees another page (clickjacking).
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
]


class EdgeMiddleware:
    """A middleware between the access log and the routes of the API. The gateway has its own checks."""

    def __init__(self, app: ASGIApp, origins: OriginPolicy) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        send = add_headers(send, [*HEADERS, *self.origins.response_headers(headers)])
        try:
            self.origins.check(scope["method"], headers)
            preflight = self.origins.preflight_headers(headers) if scope["method"] == "OPTIONS" else None
            if preflight is not None:
                await send({"type": "http.response.start", "status": 200, "headers": preflight})
                await send({"type": "http.response.body", "body": b""})
                return
            if b"content-encoding" in headers:
                receive = await _unpack(scope, headers, receive)
        except ClientDisconnected:
            return
        except ApiError as error:
            if scope["path"].startswith(f"{OPENAI_PREFIX}/"):
                await Response(error.body(), error.status, headers_of(error))(scope, receive, send)
            else:
                await error_response_of(error)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await self._respond_to_head(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _respond_to_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond as to GET, with the headers alone."""
        ended = False

        async def send_head(message: Message) -> None:
            nonlocal ended
            if ended:
                return
            # The server needs the true method: it expects no body after a Content-Length.
            scope["method"] = "HEAD"
            await send(message)
            if message["type"] == "http.response.start":
                ended = True
                await send({"type": "http.response.body", "body": b""})

        scope["method"] = "GET"
        try:
            await self.app(scope, receive, send_head)
        finally:
            scope["method"] = "HEAD"


async def _unpack(scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
    """Return a `receive` with the unpacked body, and remove the header from the scope."""
    encoding = headers[b"content-encoding"]
    if not check_encoding(encoding):
        return receive
    if headers.get(b"content-type", b"").startswith(b"multipart/"):
        # An upload is larger than what may be unpacked in memory.
        raise UnsupportedEncoding(encoding.decode("latin-1"), "Send an upload uncompressed.")
    body = unpack_body(encoding, await read_body(headers, receive))
    replaced = {b"content-encoding": b"", b"content-length": b"%d" % len(body), b"transfer-encoding": b""}
    scope["headers"] = [
        (name, replaced.get(name, value)) for name, value in scope["headers"] if replaced.get(name, b"x")
    ]
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_unpacked() -> Message:
        return messages.pop() if messages else await receive()

    return receive_unpacked
