"""Hosts as network namespaces behind a bridge, whose cables a test can pull."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.services import fail_or_skip


class HostNetwork:
    """A bridge with the address of a control plane, and a namespace with its own address for each host."""

    def __init__(self, stack: ExitStack, names: tuple[str, ...]) -> None:
        # Several test processes may do this at once. The names of devices have at most 15 characters.
        self._tag = secrets.token_hex(3)
        self._subnet = f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(256)}"
        self.control_address = f"{self._subnet}.1"
        bridge = f"br{self._tag}"
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{self.control_address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, name in enumerate(names):
            namespace, cable = f"{name}{self._tag}", self._cable(name)
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "del", namespace)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", cable, "master", bridge, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "addr", "add", f"{self._subnet}.{number + 10}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")

    def prefix(self, name: str) -> tuple[str, ...]:
        """Return the words before a command that runs it on the host."""
        return ("ip", "netns", "exec", f"{name}{self._tag}")

    def pull_cable(self, name: str) -> None:
        """Cut the host off: packets are lost, and no connection is closed."""
        _ip("link", "set", self._cable(name), "down")

    def plug_cable(self, name: str) -> None:
        """Connect the host again."""
        _ip("link", "set", self._cable(name), "up")

    def _cable(self, name: str) -> str:
        return f"{name}c{self._tag}"


@contextmanager
def host_network(*names: str) -> Iterator[HostNetwork]:
    """Create a network until the block ends; only root can, and CI must."""
    if (
        os.geteuid() != 0
        or shutil.which("ip") is None
        or subprocess.run(["ip", "netns"], capture_output=True, check=False).returncode
    ):
        fail_or_skip("network namespaces need root and iproute2")
    with ExitStack() as stack:
        yield HostNetwork(stack, names)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
