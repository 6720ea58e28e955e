"""Relays of connections between the loopback of a sandboxed machine and sockets in its shared folder.

Inside, `relay.py listen PORT` connects each connection to 127.0.0.1:PORT with `/machine/PORT.sock`.
"""

import contextlib
import socket
import sys
import threading


def connect_both(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes in both directions, in threads of their own, until both ends are closed."""
    for source, target in ((one, other), (other, one)):
        threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def listen(port: int) -> None:
    """Serve a port of this machine's loopback."""
    server = socket.create_server(("127.0.0.1", port))
    while True:
        client, _ = server.accept()
        upstream = socket.socket(socket.AF_UNIX)
        try:
            upstream.connect(f"/machine/{port}.sock")
        except OSError:
            # The tunnel is not open.
            client.close()
            continue
        connect_both(client, upstream)


if __name__ == "__main__":
    listen(int(sys.argv[2]))
