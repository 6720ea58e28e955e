"""An HTTP server in a thread whose connections can break off."""

import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class HttpStandIn:
    """A server on a free port of 127.0.0.1; `handle` answers a request with status, headers and body."""

    def __init__(self, port: int = 0, address: str = "127.0.0.1") -> None:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer((address, port), handler)
        self._server.daemon_threads = True
        self.url = f"http://{address}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def handle(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        """Return a response; None breaks off the connection."""
        raise NotImplementedError


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: HttpStandIn

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        response = self.owner.handle(
            self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body
        )
        if response is None:
            # A reset, as a machine in between sends it.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            self.wfile = open("/dev/null", "wb")  # noqa: SIM115, PTH123 — the base class flushes it
            return
        status, headers, content = response
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = do_PUT = _respond  # noqa: N815 — the names are http.server's

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""
