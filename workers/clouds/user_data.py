"""User data: the program that a new machine runs as root at its first boot.

It is `host_setup.sh` after assignments of typed values. A key of a cloud account is never among them.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

_PROGRAM = Path(__file__).with_name("host_setup.sh")
# What gives access to an account at a cloud.
CLOUD_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "LAMBDA_API_KEY")
_PUBLIC_KEY = r"(ssh-ed25519|ecdsa-sha2-nistp(256|384|521)|ssh-rsa) [A-Za-z0-9+/]{40,1200}={0,2}"
_LOOPBACK = frozenset({"127.0.0.1", "localhost"})


@dataclass(frozen=True)
class TunnelAccess:
    """The SSH key with which the control host may open reverse forwards on the machine, and nothing else."""

    public_key: str
    """`type base64`."""
    listen_ports: tuple[int, ...]
    """Ports on the machine's loopback where the control plane's services appear."""

    def __post_init__(self) -> None:
        _check("public_key", self.public_key, _PUBLIC_KEY)
        if not self.listen_ports or not all(1024 <= port <= 65535 for port in self.listen_ports):
            raise ValueError("listen_ports must be 1024 to 65535.")

    @property
    def authorized_line(self) -> str:
        """The line of `authorized_keys`; `restrict` forbids a shell, agents, X11 and all other forwards."""
        ports = ",".join(f'permitlisten="127.0.0.1:{port}"' for port in self.listen_ports)
        return f"restrict,port-forwarding,{ports} {self.public_key} tunesmith-tunnel"


@dataclass(frozen=True)
class HostSetup:
    """What a machine needs to become a host."""

    host_id: str
    join_key: str = field(repr=False)
    """An API key of the scope `worker`, which was created for this host and is revoked with it."""
    requirement: str
    """The package for pip: `tunesmith[trainer]==1.2`, or the address of a wheel."""
    url: str = "http://127.0.0.1:8000"
    """The control plane's API on the machine's own loopback, where the tunnel ends."""
    ssh_user: str = "ubuntu"
    tunnel: TunnelAccess | None = None
    spot: bool = False
    boot_minutes: int = 60
    """Minutes until the worker must have renewed the machine for the first time."""
    lease_minutes: int = 15
    """Minutes after which a machine that is not renewed shuts itself down."""
    poll_seconds: int = 10

    PATTERNS: ClassVar[Mapping[str, str]] = {
        "host_id": r"[a-z0-9][a-z0-9_]{0,63}",
        "join_key": r"[A-Za-z0-9_-]{8,200}",
        # One requirement without options: a name, extras, versions and markers, or the address of a wheel.
        "requirement": r"[A-Za-z0-9][A-Za-z0-9 ._\-\[\],=<>!~;:/@+%#&?'\"()]{0,499}",
        "ssh_user": r"[a-z_][a-z0-9_-]{0,31}",
    }

    def __post_init__(self) -> None:
        """Check the values; raises ValueError. What passes is quoted as well."""
        for name, pattern in self.PATTERNS.items():
            _check(name, getattr(self, name), pattern)
        address = urlsplit(self.url)
        is_plain = self.url == f"http://{address.hostname}:{address.port}"
        if address.hostname not in _LOOPBACK or not is_plain:
            raise ValueError(f"url must be http://127.0.0.1:<port>, not {self.url[:100]!r}.")
        for name in ("boot_minutes", "lease_minutes", "poll_seconds"):
            if not 1 <= getattr(self, name) <= 24 * 60:
                raise ValueError(f"{name} must be 1 to 1440.")

    def render(self, environment: Mapping[str, str]) -> str:
        """Return the user data; the environment is that of the process that holds the keys of clouds.

        Raises:
            AssertionError: A key of a cloud account would be part of it.
        """
        values = {
            "HOST_ID": self.host_id,
            "JOIN_KEY": self.join_key,
            "REQUIREMENT": self.requirement,
            "URL": self.url,
            "SSH_USER": self.ssh_user,
            "TUNNEL_KEY_LINE": self.tunnel.authorized_line if self.tunnel is not None else "",
            "SPOT": str(int(self.spot)),
            "BOOT_MINUTES": str(self.boot_minutes),
            "LEASE_MINUTES": str(self.lease_minutes),
            "POLL_SECONDS": str(self.poll_seconds),
        }
        assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
        for name in CLOUD_SECRETS:
            secret = environment.get(name, "").strip()
            assert not secret or secret not in assignments, f"{name} would be part of the user data"
        return f"#!/bin/bash\n{assignments}{_PROGRAM.read_text(encoding='utf-8')}"


def _check(name: str, value: str, pattern: str) -> None:
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{name} is not what it must be: {pattern}")
