"""Tunnels to launched hosts, through which their workers reach API, database and broker of the control host.

The control host opens them, so that nothing of it is exposed. At AWS the machine's host key is read from its
console output before the first connection. Lambda publishes none: the first key that the machine shows is
trusted, and written into the host's row. In either case no other key is accepted later.
"""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from sqlmodel import col

from app.hosts import lifecycle
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Host
from trainers.configs.clouds import CloudName
from workers.clouds.user_data import TunnelAccess
from workers.tunnels.forwards import (
    API_PORT,
    BROKER_PORT,
    DATABASE_PORT,
    LOOPBACK,
    Forward,
    SshAddress,
)
from workers.tunnels.tunnel import Tunnel

KEY_FILE = "tunnel_key"
PORTS = (API_PORT, DATABASE_PORT, BROKER_PORT)
KEYGEN_SECONDS = 30

logger = logging.getLogger(__name__)


class CloudTunnels:
    """The tunnels to the hosts of one cloud."""

    def __init__(self, settings: Settings, ssh_user: str) -> None:
        self._folder = settings.data_dir / "tunnels"
        self._ssh_user = ssh_user
        self._forwards = list_forwards(settings)
        self._tunnels: dict[str, Tunnel] = {}

    def keep(self, hosts: Sequence[Host]) -> None:
        """Open a tunnel to each of these hosts that has none, and close all others."""
        for host_id in self._tunnels.keys() - {host.id for host in hosts}:
            self._tunnels.pop(host_id).stop()
        for host in hosts:
            if host.id not in self._tunnels and is_reachable(host):
                self._tunnels[host.id] = self._open(host)
            elif host.id in self._tunnels and not host.ssh_host_keys:
                self._record_trusted_key(host)

    def _open(self, host: Host) -> Tunnel:
        assert host.address is not None, "the host is reachable"
        address = SshAddress(host.ssh_user or self._ssh_user, host.address)
        keys = "\n".join(host.ssh_host_keys) or None
        # A folder for each machine: an address may be that of an earlier one, with another key.
        folder = self._folder / f"{host.id}-{host.epoch}"
        tunnel = Tunnel(address, ensure_key(self._folder), keys, self._forwards, folder)
        tunnel.start()
        return tunnel

    def _record_trusted_key(self, host: Host) -> None:
        keys = self._tunnels[host.id].host_key.splitlines()
        if keys:
            logger.warning("trusted the host key of host %s on first use", host.id)
            with transaction() as session:
                lifecycle.write(
                    session, host.id, {"ssh_host_keys": keys}, [col(Host.machine_id) == host.machine_id]
                )


def is_reachable(host: Host) -> bool:
    """Return whether a tunnel can be opened: the machine has an address, and at AWS a known host key."""
    return host.address is not None and (host.cloud is not CloudName.aws or bool(host.ssh_host_keys))


def list_forwards(settings: Settings) -> list[Forward]:
    """Return the ports of a launched host that lead to API, database and broker, as this worker does."""
    api = urlsplit(settings.host_api_url or f"http://{LOOPBACK}:{settings.port}")
    database = urlsplit(settings.database_url.get_secret_value())
    broker = urlsplit(settings.broker_url.get_secret_value())
    targets = (
        (API_PORT, api.hostname, api.port or (443 if api.scheme == "https" else 80)),
        (DATABASE_PORT, database.hostname, database.port or 5432),
        (BROKER_PORT, broker.hostname, broker.port or 6379),
    )
    return [Forward(listen, host or LOOPBACK, port, is_reverse=True) for listen, host, port in targets]


def tunnel_access(settings: Settings) -> TunnelAccess:
    """Return what a machine allows the key of this worker's tunnels."""
    public = ensure_key(settings.data_dir / "tunnels").with_suffix(".pub").read_text(encoding="utf-8")
    kind, encoded = public.split()[:2]
    return TunnelAccess(f"{kind} {encoded}", PORTS)


def ensure_key(folder: Path) -> Path:
    """Return the file of the private key of this worker's tunnels, which is created once."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / KEY_FILE
    if not path.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tunesmith-tunnel", "-f", str(path)]
        subprocess.run(command, check=True, timeout=KEYGEN_SECONDS, stdin=subprocess.DEVNULL)
    return path
