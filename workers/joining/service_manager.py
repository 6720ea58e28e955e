"""Installation and removal of a worker's unit: systemd's or launchd's, of the system or of a user."""

import getpass
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.joining.units import LABEL, UNIT_NAME, WorkerUnit

SYSTEMD_FOLDER = Path("/etc/systemd/system")
LAUNCH_DAEMONS = Path("/Library/LaunchDaemons")


class ServiceManagerFailed(Exception):
    """The unit cannot be installed, started or stopped."""


@dataclass(frozen=True)
class ServiceManager:
    """What starts programs on this host; `of_system` is for a unit that root installs."""

    kind: str
    of_system: bool

    @classmethod
    def find(cls) -> "ServiceManager | None":
        """Return this host's service manager; None if there is none, as in most containers."""
        of_system = os.geteuid() == 0
        if platform.system() == "Darwin":
            return cls("launchd", of_system)
        is_running = Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None
        return cls("systemd", of_system) if is_running else None

    @property
    def path(self) -> Path:
        """The file of the unit."""
        if self.kind == "launchd":
            folder = LAUNCH_DAEMONS if self.of_system else Path.home() / "Library" / "LaunchAgents"
            return folder / f"{LABEL}.plist"
        folder = SYSTEMD_FOLDER if self.of_system else Path.home() / ".config" / "systemd" / "user"
        return folder / UNIT_NAME

    def write(self, unit: WorkerUnit) -> str:
        """Return the text of the unit."""
        return unit.to_launchd() if self.kind == "launchd" else unit.to_systemd()

    def install(self, unit: WorkerUnit, *, start: bool) -> None:
        """Write the unit, enable it, and start or restart it; raises ServiceManagerFailed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.write(unit), encoding="utf-8")
        if self.kind == "launchd":
            _run(["launchctl", "bootout", f"{self._domain}/{LABEL}"], check=False)
            if start:
                _run(["launchctl", "bootstrap", self._domain, str(self.path)])
            return
        _run([*self._systemctl, "daemon-reload"])
        _run([*self._systemctl, "enable", UNIT_NAME])
        if not self.of_system:
            # Otherwise the worker ends when the user logs out.
            _run(["loginctl", "enable-linger", getpass.getuser()], check=False)
        if start:
            _run([*self._systemctl, "restart", UNIT_NAME])

    def remove(self) -> bool:
        """Stop the worker and remove its unit; return False if there is none."""
        if not self.path.exists():
            return False
        if self.kind == "launchd":
            _run(["launchctl", "bootout", f"{self._domain}/{LABEL}"], check=False)
        else:
            _run([*self._systemctl, "disable", "--now", UNIT_NAME])
        self.path.unlink()
        if self.kind == "systemd":
            _run([*self._systemctl, "daemon-reload"])
        return True

    @property
    def _systemctl(self) -> list[str]:
        return ["systemctl"] if self.of_system else ["systemctl", "--user"]

    @property
    def _domain(self) -> str:
        return "system" if self.of_system else f"gui/{os.getuid()}"


def _run(command: Sequence[str], *, check: bool = True) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ServiceManagerFailed(f"{command[0]} cannot be started: {error}") from error
    if check and done.returncode:
        reason = (done.stderr or done.stdout).strip()
        raise ServiceManagerFailed(f"`{' '.join(command)}` failed with status {done.returncode}: {reason}")
