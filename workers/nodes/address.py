"""The address of this host among those of a run, and the port where their processes meet."""

import socket
from ipaddress import ip_address
from pathlib import Path

import psutil
from sqlalchemy import make_url

from app.settings import Settings

# One of them is in each container of Docker or Podman.
CONTAINER_FILES = (".dockerenv", "run/.containerenv")
# Kubernetes routes the addresses of containers between hosts.
ROUTED_FILES = ("var/run/secrets/kubernetes.io",)
# Any port: a datagram socket sends nothing when it connects.
DEFAULT_PORT = 5432


def find_node_address(settings: Settings) -> str | None:
    """Return the address at which other hosts reach this one; None if it takes no part in runs on several.

    Behind a tunnel, the route to the database is the loopback's, and nobody else reaches that.
    """
    if settings.node_address:
        return settings.node_address
    if not settings.is_team or settings.tunnel_url:
        return None
    address = _find_route(settings.database_url.get_secret_value())
    return None if address is None or ip_address(address).is_loopback else address


def network_environment(address: str) -> dict[str, str]:
    """Return the variables with which the processes use the network of this address; empty if unknown.

    Without them gloo takes the address of the host's name, which is often that of the loopback.
    """
    interface = find_interface(address)
    if interface is None:
        return {}
    # Without `=`, NCCL takes all interfaces whose names begin so.
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}


def find_interface(address: str) -> str | None:
    """Return the name of the network interface that has the address, or that its name resolves to."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(address, None)}
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        # An address of IPv6 has its interface as a suffix.
        if found & {one.address.partition("%")[0] for one in addresses}:
            return str(name)
    return None


def is_container_bridge(interface: str, root: Path = Path("/")) -> bool:
    """Return whether the interface leads to a network of containers, which other hosts do not reach.

    The other end of its cable is then an interface of the host, which has another number.
    """
    has = [any((root / name).exists() for name in names) for names in (CONTAINER_FILES, ROUTED_FILES)]
    if has != [True, False]:
        return False
    device = root / "sys/class/net" / interface
    try:
        own, other = ((device / name).read_text().strip() for name in ("ifindex", "iflink"))
    except OSError:
        return False
    return own != other


def _find_route(database_url: str) -> str | None:
    """Return this host's address on the way to the database's host."""
    url = make_url(database_url)
    if not url.host:
        return None
    try:
        family, kind, _, _, server = socket.getaddrinfo(
            url.host, url.port or DEFAULT_PORT, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(server)
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return None
