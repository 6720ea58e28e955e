"""A client that sends bytes as they are, for requests that no HTTP library would send."""

import contextlib
import socket
import time
from dataclasses import dataclass

from tests.integration.serving.conftest import Server

CHUNKED_END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Response:
    """The status, the headers and the body of a response."""

    status: int
    headers: dict[str, str]
    body: bytes


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(server: Server, *parts: bytes, until: bytes = b"", pause_seconds: float = 0.02) -> bytes:
    """Return all bytes that arrive until the server closes, or until these bytes."""
    with connect(server) as connection:
        # The server may reject the request before its end, and close.
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_seconds)
        return receive(connection, until)


def receive(connection: socket.socket, until: bytes = b"") -> bytes:
    response = b""
    with contextlib.suppress(ConnectionError):
        while not (until and until in response) and (more := connection.recv(65536)):
            response += more
    return response


def request_bytes(method: str, path: str, *headers: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Return a request that closes its connection."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def send(server: Server, method: str, path: str, *headers: str, body: bytes = b"") -> Response:
    """Return the response to a request."""
    return parse(exchange(server, request_bytes(method, path, *headers, body=body), pause_seconds=0))


def parse(response: bytes) -> Response:
    head, _, body = response.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return Response(int(line.split()[1]), headers, body)
