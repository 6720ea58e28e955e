"""SSH tunnels.

Goal: a tunnel forwards its ports on loopback only, is opened again when it breaks, and never connects to a
server with another host key. Method: a private sshd on 127.0.0.1 with keys of its own, and a server that
sends a line at the other end.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from app.scheduling.incidents import list_problems
from tests import services
from tests.e2e.platform import wait_until
from workers.tunnels.forwards import Forward, SshAddress
from workers.tunnels.tunnel import Tunnel, TunnelState

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
ClientAliveInterval 1
ClientAliveCountMax 2
"""


class SshServer:
    """A private sshd, which a test can stop, start and give another host key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = SshAddress(os.environ.get("USER") or "root", "127.0.0.1", services.free_port())
        self.user_key = make_key(folder / "user_key")
        self.change_host_key()
        config = CONFIG.format(port=self.address.port, folder=folder)
        (folder / "sshd_config").write_text(config)
        self.start()

    @property
    def host_key(self) -> str:
        return (self._folder / "host_key.pub").read_text()

    def change_host_key(self) -> None:
        make_key(self._folder / "host_key")

    def start(self) -> None:
        command = [str(SSHD), "-D", "-e", "-f", str(self._folder / "sshd_config")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_until(lambda: is_listening(self.address.port), 60, "sshd does not listen")

    def end_connections(self, number: int = signal.SIGKILL) -> None:
        for child in psutil.Process(self._process.pid).children(recursive=True):
            child.send_signal(number)

    def stop(self) -> None:
        self.end_connections()
        self._process.terminate()
        self._process.wait(60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    services.find_program("sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    folder = tmp_path / "sshd"
    folder.mkdir()
    server = SshServer(folder)
    yield server
    server.stop()


@pytest.fixture
def echo() -> Iterator[int]:
    """Yield the port of a server that sends one line to each client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.sendall(b"control")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def opened(
    server: SshServer, folder: Path, *forwards: Forward, host_key: str | None = None
) -> Iterator[Tunnel]:
    tunnel = Tunnel(server.address, server.user_key, host_key, forwards, folder)
    tunnel.start()
    try:
        yield tunnel
    finally:
        tunnel.stop()


def make_key(path: Path) -> Path:
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def read_line(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        return client.recv(100)


def list_addresses(port: int) -> set[str]:
    """Return the local addresses on which the port listens."""
    return {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.status == "LISTEN" and one.laddr.port == port
    }


def test_it_forwards_both_ways_on_loopback_only(server: SshServer, echo: int, tmp_path: Path) -> None:
    here, there = services.free_port(), services.free_port()
    forwards = Forward(here, "127.0.0.1", echo), Forward(there, "127.0.0.1", echo, is_reverse=True)
    with opened(server, tmp_path / "tunnel", *forwards, host_key=server.host_key) as tunnel:
        assert tunnel.wait_until_open(60), tunnel.state
        assert (read_line(here), read_line(there)) == (b"control", b"control")
        assert list_addresses(here) | list_addresses(there) == {"127.0.0.1"}
    assert tunnel.state is TunnelState.stopped and not is_listening(here)


def test_it_is_opened_again_when_the_connection_breaks(server: SshServer, echo: int, tmp_path: Path) -> None:
    port = services.free_port()
    forward = Forward(port, "127.0.0.1", echo, is_reverse=True)
    with opened(server, tmp_path / "tunnel", forward) as tunnel:
        assert tunnel.wait_until_open(60)
        server.stop()
        wait_until(lambda: tunnel.state is TunnelState.broken, 60, "the state does not change")
        assert any("tunnel" in problem for problem in list_problems())
        server.start()
        assert tunnel.wait_until_open(60)
        assert read_line(port) == b"control"
    assert not any("tunnel" in problem for problem in list_problems())


def test_a_key_is_trusted_on_first_use_and_another_one_is_refused(
    server: SshServer, echo: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forward = Forward(services.free_port(), "127.0.0.1", echo)
    with opened(server, tmp_path / "tunnel", forward) as tunnel:
        assert tunnel.wait_until_open(60)
        assert tunnel.host_key in server.host_key and tunnel.host_key in caplog.text
        server.stop()
        server.change_host_key()
        server.start()
        wait_until(lambda: tunnel.state is TunnelState.refused, 60, "the state does not change")
        assert any("another host key" in problem for problem in list_problems())
        assert not is_listening(forward.listen_port)


def test_a_given_key_is_the_only_one(server: SshServer, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other").with_name("other.pub").read_text()
    with opened(server, tmp_path / "tunnel", host_key=other) as tunnel:
        wait_until(lambda: tunnel.state is TunnelState.refused, 60, "the state does not change")


def test_ssh_ends_with_the_process_that_holds_the_tunnel(
    server: SshServer, echo: int, tmp_path: Path
) -> None:
    port = services.free_port()
    program = (
        "import sys, time, pathlib\n"
        "from workers.tunnels.tunnel import Tunnel\n"
        "from workers.tunnels.forwards import Forward, SshAddress\n"
        f"t = Tunnel({server.address!r}, pathlib.Path({str(server.user_key)!r}), None,\n"
        f"           [Forward({port}, '127.0.0.1', {echo})], pathlib.Path({str(tmp_path / 'tunnel')!r}))\n"
        "t.start(); assert t.wait_until_open(60); print('open', flush=True); time.sleep(120)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        holder.kill()
    wait_until(lambda: not is_listening(port), 60, "the state does not change")


@pytest.mark.parametrize(
    "make",
    [
        lambda: SshAddress("-oProxyCommand=x", "host"),
        lambda: SshAddress("me", "-oProxyCommand=x"),
        lambda: SshAddress.from_url("ssh://me:password@host"),
        lambda: SshAddress.from_url("https://me@host"),
        lambda: Forward(1, "a b", 2),
        lambda: Forward(0, "host", 2),
    ],
)
def test_names_that_ssh_could_take_for_options_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"is not|outside"):
        make()
