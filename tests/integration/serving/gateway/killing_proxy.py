"""A TCP proxy to a real engine that kills the engine at a chosen place of its response.

The place is defined by the bytes of the response, so that nothing depends on the speed of the machine.
"""

import os
import re
import signal
import socket
import threading
from urllib.parse import urlsplit

from tests.integration.serving.conftest import Server

PLACES = {
    "before its head": rb"",
    "before its first chunk": rb".*?\r\n\r\n",
    "in the middle": rb"(.*?data: [^\n]*\n\n){5}",
    "after its last text": rb'.*?"finish_reason":"(stop|length)"[^\n]*\n\n',
    "after its usage": rb'.*?"usage":\{[^\n]*\n\n',
    "within [DONE]": rb".*?data: \[DO",
    "after [DONE]": rb".*?data: \[DONE\]\n\n",
    "within a plain response": rb".*?\r\n\r\n.{30}",
}


class KillingProxy:
    """Forwards one connection; later ones are refused, as by a dead engine."""

    def __init__(self, engine: Server, place: str) -> None:
        self.engine = engine
        self.place = re.compile(PLACES[place], re.DOTALL)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._forward_connection, daemon=True).start()

    def _forward_connection(self) -> None:
        gateway, _ = self.listener.accept()
        self.listener.close()
        address = urlsplit(self.engine.url)
        with gateway, socket.create_connection((str(address.hostname), int(address.port or 0))) as engine:
            threading.Thread(target=self._forward_requests, args=(gateway, engine), daemon=True).start()
            self._forward_response(gateway, engine)

    def _forward_requests(self, gateway: socket.socket, engine: socket.socket) -> None:
        try:
            while read := gateway.recv(65536):
                engine.sendall(read)
        except OSError:
            pass  # The engine or the connection is closed.

    def _forward_response(self, gateway: socket.socket, engine: socket.socket) -> None:
        forwarded, response = 0, b""
        while read := engine.recv(65536):
            response += read
            if found := self.place.match(response):
                gateway.sendall(response[forwarded : found.end()])
                os.kill(self.engine.process.pid, signal.SIGKILL)
                self.engine.process.wait()
                gateway.shutdown(socket.SHUT_RDWR)
                return
            gateway.sendall(response[forwarded:])
            forwarded = len(response)
