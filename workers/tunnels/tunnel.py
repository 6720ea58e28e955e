"""A tunnel: the system's `ssh` as a guarded child, which is opened again when it breaks.

No part of it listens on an address other than loopback. The host key is given, or trusted on first use and
recorded; a server with another key is refused from then on.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from app.scheduling.incidents import Incident, describe_error
from workers.hosts.guarded_process import GuardedProcess, start_guarded_process
from workers.tunnels.forwards import Forward, SshAddress
from workers.tunnels.host_keys import KNOWN_HOSTS, read_known_hosts, write_known_hosts

# A connection that is lost without a packet is noticed after both.
ALIVE_SECONDS, MAX_MISSED_ALIVE = 5, 3
CONNECT_SECONDS = 15
# Without a renewal, the guard kills ssh: a tunnel never outlives the process that holds it.
LEASE_SECONDS = 30.0
POLL_SECONDS = 0.1
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, STABLE_SECONDS = 0.5, 30.0, 10.0
MAX_LOG_BYTES = 1 << 20
LOG = "ssh.log"
INHERITED_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "TMPDIR")
OPEN_LINE = b"Entering interactive session"
REVERSE_OPEN_LINE = b"remote forward success for"
HOST_KEY_LINES = (b"REMOTE HOST IDENTIFICATION HAS CHANGED", b"Host key verification failed")

logger = logging.getLogger(__name__)


class TunnelState(StrEnum):
    """Whether the forwarded ports work."""

    connecting = "connecting"
    open = "open"
    broken = "broken"  # Opened again after a while.
    refused = "refused"  # The server has another host key than the recorded one.
    stopped = "stopped"


class TunnelBroken(ConnectionError):
    """The connection ended, or was not established."""


class Tunnel:
    """Forwarded ports over one SSH connection, which a thread keeps open until it is stopped."""

    def __init__(
        self,
        address: SshAddress,
        key_path: Path | None,
        host_key: str | None,
        forwards: Sequence[Forward],
        folder: Path,
    ) -> None:
        """Prepare a tunnel.

        Args:
            address: The SSH server and the user.
            key_path: File of the private key; None uses ssh's agent and its default keys.
            host_key: Public keys of the server, one a line; None trusts the first one that it shows, unless
                `folder` has a recorded one.
            forwards: The ports.
            folder: Folder of the tunnel's log and recorded host key, of which it is the only user.
        """
        self._address = address
        self._key_path = key_path
        self._forwards = list(forwards)
        self._folder = folder
        self._incident = Incident("tunnel", subject=f"{address.user}@{address.host}")
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._state = TunnelState.connecting
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name=f"tunnel {address.host}", daemon=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._trusts_first = not (host_key or read_known_hosts(folder))
        if host_key:
            write_known_hosts(folder, address.host, host_key)

    @property
    def state(self) -> TunnelState:
        """The state; a problem of the process describes what is wrong."""
        return self._state

    @property
    def problem(self) -> str:
        """Why the tunnel is not open; empty if it is, or was not tried yet."""
        return self._problem

    @property
    def host_key(self) -> str:
        """The public keys that the server must show, one a line; empty before one was trusted."""
        return read_known_hosts(self._folder)

    def start(self) -> None:
        """Start to open the tunnel, and return at once."""
        if shutil.which("ssh") is None:
            raise TunnelBroken("The program ssh is not installed (Debian: apt-get install openssh-client).")
        self._thread.start()

    def stop(self) -> None:
        """Close the tunnel, and wait until ssh has ended."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._incident.forget()
        self._set_state(TunnelState.stopped)

    def wait_until_open(self, seconds: float) -> bool:
        """Return whether the tunnel is open, after so many seconds at most."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state is TunnelState.open, seconds)

    def _run(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._keep_open()
            except Exception as error:
                # Whatever ends the connection, the tunnel is opened again.
                is_refused = self._has_logged(HOST_KEY_LINES)
                self._problem = describe_error(error)
                self._incident.record(error)
                self._set_state(TunnelState.refused if is_refused else TunnelState.broken)
            if time.monotonic() - started > STABLE_SECONDS:
                delay = FIRST_RETRY_SECONDS
            self._stopping.wait(delay)
            delay = min(2 * delay, MAX_RETRY_SECONDS)

    def _keep_open(self) -> None:
        """Open the tunnel, and renew its lease until it ends; raise TunnelBroken unless it is stopped."""
        self._log.unlink(missing_ok=True)
        process = start_guarded_process(
            self._make_command(),
            log=self._log,
            environment={name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ},
            seconds=LEASE_SECONDS,
        )
        try:
            self._watch(process)
        finally:
            process.kill()

    def _watch(self, process: GuardedProcess) -> None:
        renewed, is_open = time.monotonic(), False
        while not self._stopping.is_set():
            status = process.wait(POLL_SECONDS)
            if status is not None:
                raise TunnelBroken(f"ssh ended with status {status}: {self._describe_end()}")
            if not is_open and self._is_open():
                is_open = True
                self._report_open()
            if time.monotonic() - renewed > LEASE_SECONDS / 4:
                renewed = time.monotonic()
                process.extend(LEASE_SECONDS)
                if self._log.stat().st_size > MAX_LOG_BYTES:
                    # The guard appends, so that the file can be cut at any time.
                    os.truncate(self._log, 0)

    def _report_open(self) -> None:
        if self._trusts_first:
            self._trusts_first = False
            logger.warning("trusted the host key of %s on first use: %s", self._address.host, self.host_key)
        self._problem = ""
        self._incident.resolve()
        self._set_state(TunnelState.open)
        logger.info("the tunnel to %s is open", self._address.host)

    def _make_command(self) -> list[str]:
        checking = "yes" if read_known_hosts(self._folder) else "accept-new"
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": checking,
            "UserKnownHostsFile": str(self._folder / KNOWN_HOSTS),
            "GlobalKnownHostsFile": os.devnull,
            "HostKeyAlias": self._address.host,
            "UpdateHostKeys": "no",
            "HashKnownHosts": "no",
            "ExitOnForwardFailure": "yes",
            "GatewayPorts": "no",
            "ForwardAgent": "no",
            "PermitLocalCommand": "no",
            "ControlMaster": "no",
            "ControlPath": "none",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ServerAliveInterval": str(ALIVE_SECONDS),
            "ServerAliveCountMax": str(MAX_MISSED_ALIVE),
            # Its lines report when the forwards work.
            "LogLevel": "DEBUG1",
        }
        if self._key_path is not None:
            options |= {"IdentityFile": str(self._key_path), "IdentitiesOnly": "yes"}
        return [
            "ssh",
            *("-F", os.devnull, "-N", "-T", "-p", str(self._address.port)),
            *(argument for name, value in options.items() for argument in ("-o", f"{name}={value}")),
            *(argument for forward in self._forwards for argument in forward.to_arguments()),
            *("-l", self._address.user, "--", self._address.host),
        ]

    @property
    def _log(self) -> Path:
        return self._folder / LOG

    def _is_open(self) -> bool:
        text = self._log.read_bytes() if self._log.is_file() else b""
        n_reverse = sum(forward.is_reverse for forward in self._forwards)
        return OPEN_LINE in text and text.count(REVERSE_OPEN_LINE) >= n_reverse

    def _has_logged(self, lines: Sequence[bytes]) -> bool:
        text = self._log.read_bytes() if self._log.is_file() else b""
        return any(line in text for line in lines)

    def _describe_end(self) -> str:
        """Return the last line of ssh that is not about its progress."""
        if self._has_logged(HOST_KEY_LINES):
            return "the server has another host key than the recorded one; if it was replaced, remove " + str(
                self._folder / KNOWN_HOSTS
            )
        lines = self._log.read_text(errors="replace").splitlines() if self._log.is_file() else []
        ours = [line for line in lines if line.strip() and not line.startswith(("debug1:", "OpenSSH_"))]
        return ours[-1].strip() if ours else "no message"

    def _set_state(self, state: TunnelState) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()
