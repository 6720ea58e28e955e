"""The unit that starts a worker: of systemd on Linux, of launchd on macOS."""

import plistlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

UNIT_NAME = "tunesmith-worker.service"
LABEL = "ai.tunesmith.worker"
# A worker that stops saves a checkpoint first.
STOP_SECONDS = 150

SYSTEMD = """\
[Unit]
Description=Tunesmith worker
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
WorkingDirectory={folder}
{user}Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec={stop_seconds}
UMask=0077
NoNewPrivileges=true

[Install]
WantedBy={target}
"""


@dataclass(frozen=True)
class WorkerUnit:
    """How a worker is started.

    Attributes:
        python: Interpreter with the packages of this installation.
        folder: The data directory, in which the worker starts.
        env_file: File of its variables.
        name: Name of the worker.
        queues: Queues that it serves; none means those of the host's hardware.
        user: User of a unit of the system; empty for a unit of the user.
    """

    python: Path
    folder: Path
    env_file: Path
    name: str
    queues: Sequence[str] = ()
    user: str = ""

    @property
    def command(self) -> list[str]:
        """The command that starts the worker."""
        queues = [argument for queue in self.queues for argument in ("--queue", queue)]
        return [
            str(self.python), "-m", "workers", "--env-file", str(self.env_file), "--name", self.name, *queues,
        ]  # fmt: skip

    def to_systemd(self) -> str:
        """Return the text of a unit of systemd."""
        return SYSTEMD.format(
            command=" ".join(map(_quote, self.command)),
            folder=_escape(str(self.folder)),
            user=f"User={self.user}\n" if self.user else "",
            stop_seconds=STOP_SECONDS,
            target="multi-user.target" if self.user else "default.target",
        )

    def to_launchd(self) -> str:
        """Return the text of a property list of launchd."""
        log = str(self.folder / "worker.log")
        values = {
            "Label": LABEL,
            "ProgramArguments": self.command,
            "WorkingDirectory": str(self.folder),
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": 5,
            "ExitTimeOut": STOP_SECONDS,
            "ProcessType": "Interactive",
            "StandardOutPath": log,
            "StandardErrorPath": log,
            "Umask": 0o077,
            **({"UserName": self.user} if self.user else {}),
        }
        return plistlib.dumps(values).decode()


def _quote(argument: str) -> str:
    """Return an argument of ExecStart: in double quotes if needed; `%` and `$` stand for themselves."""
    escaped = _escape(argument).replace("$", "$$")
    if shlex.quote(argument) == argument:
        return escaped
    backslashed = escaped.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{backslashed}"'


def _escape(text: str) -> str:
    return text.replace("%", "%%")
