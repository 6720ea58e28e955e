"""A machine of a cloud as namespaces of this one: user data runs in it, and leaves nothing here.

Its root is an overlay whose changes are in memory, its network has a loopback alone, and its processes end
with it. `shutdown`, `reboot`, `apt-get`, `systemctl`, `systemd-run`, `pip` and the creation of environments
are stubs, first in PATH and in place of the real files. **User data never runs outside of it.**
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.clouds.relay import connect_both
from tests.conftest import ROOT
from tests.services import fail_or_skip

STUBBED = (
    "shutdown",
    "reboot",
    "poweroff",
    "halt",
    "apt-get",
    "systemctl",
    "systemd-run",
    "pip",
    "pip3",
    "service",
)
# Prepares the root, then becomes process 1 of the machine, with which all others end.
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=512m tmpfs "$1/layers"
mkdir "$1/layers/upper" "$1/layers/work" "$1/layers/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$1/layers/upper",workdir="$1/layers/work" "$1/layers/root"
root="$1/layers/root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir -p "$root/machine" "$root/etc/systemd/system"
mount --bind "$1/shared" "$root/machine"
for name in $2; do
  for folder in usr/bin usr/sbin; do
    rm -f "$root/$folder/$name"
    cp "$1/shared/stubs/$name" "$root/$folder/$name"
  done
done
ip link set lo up
exec chroot "$root" /bin/bash /machine/init
"""
_INIT = """
export PATH=/machine/stubs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
for port in $(cat /machine/ports); do python3 /machine/relay.py listen "$port" & done
/bin/bash /machine/user-data > /machine/console 2>&1 &
while [ ! -e /machine/off ]; do sleep 0.05; done
"""
_RECORD = '#!/bin/bash\necho "{name} $*" >> /machine/calls\n'
_SHUTDOWN = _RECORD + "touch /machine/off\n"
_SYSTEMCTL = '#!/bin/bash\nexec /usr/bin/python3 /machine/systemctl.py "$@"\n'
# An environment is a folder whose programs are stubs; its Python is that of the tests.
_PYTHON3 = """#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then
  echo "python3 $*" >> /machine/calls
  mkdir -p "$3/bin"
  ln -sf /machine/stubs/bootstrap-python "$3/bin/python"
  ln -sf /machine/stubs/uv "$3/bin/uv"
  exit 0
fi
exec /usr/bin/python3 "$@"
"""
_UV = """#!/bin/bash
echo "uv $*" >> /machine/calls
if [ "$1" = venv ]; then
  folder="${!#}"
  mkdir -p "$folder/bin"
  ln -sf /machine/stubs/package-python "$folder/bin/python"
fi
exit "$(cat /machine/uv_status 2> /dev/null || echo 0)"
"""
_PACKAGE_PYTHON = """#!/bin/bash
case "$*" in
  *torch.cuda.is_available*) [ -e /machine/cuda ]; exit ;;
  *"workers join"*)
    echo "python $*" >> /machine/calls
    [ ! -x /machine/join ] || exec /machine/join "$@" ;;
esac
cd "{root}" && exec "{python}" "$@"
"""


class SandboxMachine:
    """A machine whose files for the test are in `shared`: `calls` and `console` of what it does."""

    def __init__(
        self, folder: Path, user_data: str, *, tick_seconds: float = 0.1, has_cuda: bool = True
    ) -> None:
        """Prepare a machine; `start` boots it."""
        self.shared = folder / "shared"
        (folder / "layers").mkdir(parents=True)
        (self.shared / "stubs").mkdir(parents=True)
        self._folder = folder
        self._ports: dict[int, int] = {}
        self._sockets: list[socket.socket] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.write("user-data", user_data)
        self.write("init", _INIT)
        self.write("tick_seconds", str(tick_seconds))
        if has_cuda:
            self.write("cuda", "")
        shutil.copy(Path(__file__).with_name("systemctl_stub.py"), self.shared / "systemctl.py")
        shutil.copy(Path(__file__).with_name("relay.py"), self.shared / "relay.py")
        for name in STUBBED:
            text = _SHUTDOWN if name in ("shutdown", "reboot", "poweroff", "halt") else _RECORD
            self._write_stub(name, _SYSTEMCTL if name == "systemctl" else text.format(name=name))
        self._write_stub("python3", _PYTHON3)
        self._write_stub("uv", _UV)
        # The program waits for seconds where a test has none.
        self._write_stub("sleep", "#!/bin/bash\nexec /usr/bin/sleep 0.05\n")
        self._write_stub("bootstrap-python", _RECORD.format(name="bootstrap-python"))
        self._write_stub("package-python", _PACKAGE_PYTHON.format(root=ROOT, python=sys.executable))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def write(self, name: str, text: str) -> None:
        """Write a file that the machine sees as `/machine/<name>`."""
        (self.shared / name).write_text(text)

    def read(self, name: str) -> str:
        """Return a file of `/machine`; empty if there is none."""
        path = self.shared / name
        return path.read_text(errors="replace") if path.exists() else ""

    def calls(self) -> list[str]:
        """Return what was called of the stubs, in order."""
        return self.read("calls").splitlines()

    def start(self, ports: dict[int, int]) -> None:
        """Boot; the machine's ports on loopback reach these of this machine, as through a reverse tunnel."""
        self._ports = ports
        self.write("ports", " ".join(map(str, ports)))
        command = [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "/bin/bash",
            "-c",
            _BOOT,
            "boot",
        ]
        with (self.shared / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(self._folder), " ".join(STUBBED)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def open_tunnel(self) -> None:
        """Let the machine's connections through from now on."""
        for port, target in self._ports.items():
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(self.shared / f"{port}.sock"))
            server.listen(64)
            self._sockets.append(server)
            threading.Thread(target=self._serve, args=(server, target), daemon=True).start()

    def close_tunnel(self) -> None:
        """Break off all connections of the machine, and let no more through."""
        for port in self._ports:
            (self.shared / f"{port}.sock").unlink(missing_ok=True)
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    @property
    def pid(self) -> int:
        """The process that has created the machine."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_off(self) -> bool:
        """Whether the machine has ended."""
        assert self._process is not None
        return self._process.poll() is not None

    def kill(self) -> None:
        """End all processes of the machine, as the cloud does."""
        self.close_tunnel()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)

    def _serve(self, server: socket.socket, port: int) -> None:
        """Connect each connection to a port of the machine with a port of this machine."""
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                try:
                    upstream = socket.create_connection(("127.0.0.1", port), 10)
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, upstream]
                connect_both(client, upstream)

    def _write_stub(self, name: str, text: str) -> None:
        self.write(f"stubs/{name}", text)
        (self.shared / "stubs" / name).chmod(0o755)


def require_namespaces() -> None:
    """Fail or skip a test where this process may not create namespaces."""
    probe: Sequence[str] = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    if os.geteuid() != 0 or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        fail_or_skip("only root can create namespaces, where the kernel allows it")
