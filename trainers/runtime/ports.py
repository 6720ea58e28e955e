"""Ports for programs that this one starts: each is held until its program listens."""

import random
import socket
import sys
from collections.abc import Iterable
from typing import Self


class NoFreePort(Exception):
    """No port of the range is free."""


class HeldPort:
    """A port for a program that is about to start, which no other program gets meanwhile.

    A socket is bound to it that does not listen. On Linux a server can bind the port all the same, because
    servers set SO_REUSEADDR; a program that asks for any free port, or for one of a range as here, gets
    another. Elsewhere the port is only known to be free at first.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            # Without the option, so that the port of another holder is refused.
            self._socket.bind((host, port))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            self._socket.close()
            raise
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self.release()

    def release(self) -> None:
        """Stop holding the port: its program listens, or has ended."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def hold_port(host: str, ports: Iterable[int]) -> HeldPort:
    """Hold a port of the range that is free at the host; raises NoFreePort."""
    candidates = list(ports)
    # Programs of other hosts reach the port: a fixed order would make each use of it the likeliest to clash.
    random.shuffle(candidates)
    for port in candidates:
        try:
            return HeldPort(host, port)
        except OSError:
            continue
    raise NoFreePort(f"none of the {len(candidates)} ports is free at {host}")
