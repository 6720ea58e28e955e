"""The tunnel of a worker that reaches the control plane over SSH (`workers join --via`)."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.settings import Settings
from workers.tunnels.forwards import LOOPBACK, Forward, SshAddress
from workers.tunnels.tunnel import Tunnel, TunnelBroken

FOLDER = "tunnel"
OPEN_SECONDS = 30.0


def create_worker_tunnel(settings: Settings) -> Tunnel | None:
    """Return the tunnel that the settings describe, not yet started; None for a worker without one."""
    if not settings.tunnel_url:
        return None
    forwards = [Forward.from_text(text) for text in settings.tunnel_forwards]
    address = SshAddress.from_url(settings.tunnel_url)
    return Tunnel(address, settings.tunnel_key_file, None, forwards, settings.data_dir / FOLDER)


@contextmanager
def hold_worker_tunnel(settings: Settings) -> Iterator[None]:
    """Keep the tunnel of this host's worker open for the block, unless a running worker has it open."""
    tunnel = create_worker_tunnel(settings)
    forwards = [Forward.from_text(text) for text in settings.tunnel_forwards]
    if tunnel is None or all(is_listening(forward.listen_port) for forward in forwards):
        yield
        return
    with _hold(tunnel):
        yield


@contextmanager
def hold_tunnel(url: str, key_file: Path | None, folder: Path, forwards: Sequence[Forward]) -> Iterator[None]:
    """Keep a tunnel open for the block; raises TunnelBroken if it does not open in time."""
    with _hold(Tunnel(SshAddress.from_url(url), key_file, None, forwards, folder / FOLDER)):
        yield


def is_listening(port: int) -> bool:
    """Return whether a port of this host's loopback accepts connections."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((LOOPBACK, port)) == 0


@contextmanager
def _hold(tunnel: Tunnel) -> Iterator[None]:
    tunnel.start()
    try:
        if not tunnel.wait_until_open(OPEN_SECONDS):
            raise TunnelBroken(tunnel.problem or f"the tunnel is {tunnel.state} after {OPEN_SECONDS:g} s")
        yield
    finally:
        tunnel.stop()
