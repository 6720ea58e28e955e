"""Ports that a tunnel forwards: on loopback at the end where it listens, to an address of the other end."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
# Loopback ports of a launched host, at which its worker finds the API, PostgreSQL and Redis of the control
# host. They are below the range from which a kernel chooses ports of clients.
API_PORT, DATABASE_PORT, BROKER_PORT = 18000, 15432, 16379
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\]")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Forward:
    """One forwarded port.

    Attributes:
        listen_port: Loopback port that accepts connections.
        host: Host to which they lead, as the other end resolves it.
        port: Port there.
        is_reverse: Whether the port listens on the remote host, and leads to this one's side.
    """

    listen_port: int
    host: str
    port: int
    is_reverse: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a host or port that ssh could understand as something else."""
        check_host_name(self.host)
        if not (0 < self.listen_port < 1 << 16 and 0 < self.port < 1 << 16):
            raise ValueError(f"{self} has a port outside of 1 to 65535.")

    def to_arguments(self) -> list[str]:
        """Return the arguments of ssh."""
        flag = "-R" if self.is_reverse else "-L"
        return [flag, f"{LOOPBACK}:{self.listen_port}:{self.host}:{self.port}"]

    def to_text(self) -> str:
        """Return the forward as settings contain it, such as `15432=db.internal:5432`."""
        return f"{self.listen_port}={self.host}:{self.port}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the local forward that a text of `to_text` describes; raises ValueError."""
        listen, _, target = text.partition("=")
        host, _, port = target.rpartition(":")
        return cls(int(listen), host, int(port))


@dataclass(frozen=True)
class SshAddress:
    """Where an SSH server listens, and as which user to log in."""

    user: str
    host: str
    port: int = 22

    def __post_init__(self) -> None:
        """Raise ValueError for a name that ssh could understand as an option."""
        check_host_name(self.host)
        if not _USER.fullmatch(self.user):
            raise ValueError(f"{self.user!r} is not the name of a user.")

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return the address in `ssh://user@host:port`; raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "ssh" or not parts.hostname or not parts.username or parts.password is not None:
            raise ValueError(f"{url!r} is not an address such as ssh://user@control.example:22.")
        return cls(parts.username, parts.hostname, parts.port or 22)


def check_host_name(host: str) -> None:
    """Raise ValueError unless this is a host name or an address; an IPv6 address is in brackets."""
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not the name or address of a host.")


def list_reverse_forwards(api: int, database: tuple[str, int], broker: tuple[str, int]) -> list[Forward]:
    """Return the forwards with which a launched host reaches the control host's services."""
    return [
        Forward(API_PORT, LOOPBACK, api, is_reverse=True),
        Forward(DATABASE_PORT, *database, is_reverse=True),
        Forward(BROKER_PORT, *broker, is_reverse=True),
    ]
