"""A TCP proxy that loses responses: it closes the connection as soon as the request is sent.

A request asks for that by the header `x-lose-response`, whose value names it: its repetition passes.
"""

import re
import socket
import threading
from urllib.parse import urlsplit

LOSE = re.compile(rb"^x-lose-response: *(\S+)\r\n", re.IGNORECASE | re.MULTILINE)
LENGTH = re.compile(rb"^content-length: *(\d+)\r\n", re.IGNORECASE | re.MULTILINE)


class LosingProxy:
    """Forwards connections to a service; each ends with its first response, or without one."""

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        self._target = str(address.hostname), int(address.port or 80)
        self._lost: set[bytes] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as service:
            request = _read_request(client)
            # The service closes the connection after its response, which therefore needs no parsing.
            service.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            marks = set(LOSE.findall(request))
            if marks - self._lost:
                self._lost |= marks
                return
            while part := service.recv(65536):
                client.sendall(part)


def _read_request(client: socket.socket) -> bytes:
    request = b""
    while part := client.recv(65536):
        request += part
        head, separator, body = request.partition(b"\r\n\r\n")
        length = LENGTH.search(head + b"\r\n")
        if separator and len(body) >= (int(length[1]) if length else 0):
            break
    # The head has one such header.
    return re.sub(rb"\r\nconnection: *[^\r]*", b"", request, count=1, flags=re.IGNORECASE)
