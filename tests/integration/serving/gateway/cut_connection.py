"""A wire to a real engine: it passes an answer on up to a chosen place, and there the engine is killed.

The place is one in the engine's own bytes, so nothing depends on how fast the engine or the machine is.
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
    "within a plain answer": rb".*?\r\n\r\n.{30}",
}


class KillingProxy:
    """Carries one connection; whoever comes after is refused, as by an engine that is gone."""

    def __init__(self, engine: Server, place: str) -> None:
        self.engine = engine
        self.place = re.compile(PLACES[place], re.DOTALL)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self) -> None:
        gateway, _ = self.listener.accept()
        self.listener.close()
        address = urlsplit(self.engine.url)
        with gateway, socket.create_connection((str(address.hostname), int(address.port or 0))) as engine:
            threading.Thread(target=self._pass_requests, args=(gateway, engine), daemon=True).start()
            self._pass_answer(gateway, engine)

    def _pass_requests(self, gateway: socket.socket, engine: socket.socket) -> None:
        try:
            while read := gateway.recv(65536):
                engine.sendall(read)
        except OSError:
            pass  # The engine is gone, or the wire.

    def _pass_answer(self, gateway: socket.socket, engine: socket.socket) -> None:
        passed, answer = 0, b""
        while read := engine.recv(65536):
            answer += read
            if found := self.place.match(answer):
                gateway.sendall(answer[passed : found.end()])
                os.kill(self.engine.process.pid, signal.SIGKILL)
                self.engine.process.wait()
                gateway.shutdown(socket.SHUT_RDWR)
                return
            gateway.sendall(answer[passed:])
            passed = len(answer)
