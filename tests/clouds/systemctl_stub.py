"""`systemctl` and `systemd-run` of a sandboxed machine: units are started as plain processes.

It reads units as they were written, records its arguments, runs the service of a timer at each tick, restarts
a service that has ended, and stops one by SIGTERM. A test can change the time of a tick, and run a script
before each. It runs with the system's Python, without packages.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
MACHINE = Path("/machine")
STOP_SECONDS = 60.0
RESTART_SECONDS = 0.5


def read_unit(name: str) -> dict[str, list[str]]:
    """Return the values of a unit and its drop-ins by key."""
    values: dict[str, list[str]] = {}
    for path in (UNITS / name, *sorted((UNITS / f"{name}.d").glob("*.conf"))):
        for line in path.read_text().splitlines():
            key, is_value, value = line.partition("=")
            if is_value:
                values.setdefault(key.strip(), []).append(value.strip())
    return values


def environment_of(unit: dict[str, list[str]]) -> dict[str, str]:
    """Return the environment of a service."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/opt/tunesmith/data"}
    pairs = list(unit.get("Environment", []))
    for file in unit.get("EnvironmentFile", []):
        pairs += Path(file.removeprefix("-")).read_text().splitlines()
    environment |= dict(pair.strip('"').split("=", 1) for pair in pairs if "=" in pair)
    return environment


def supervise(name: str) -> None:
    """Run a timer or a service until it is stopped."""
    unit = read_unit(name)
    service = read_unit(name.replace(".timer", ".service"))
    command = shlex.split(service["ExecStart"][-1])
    folder = service.get("WorkingDirectory", ["/"])[-1]
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while not stopping:
        if name.endswith(".timer"):
            wait_for_tick()
            with (MACHINE / "ticks").open("a") as ticks:
                print(name, file=ticks)
        with (MACHINE / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=environment_of(service),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        (MACHINE / f"{name}.pid").write_text(str(child.pid))
        child.wait()
        if not name.endswith(".timer") and unit.get("Restart", ["no"])[-1] != "always":
            return
        if name.endswith(".service"):
            time.sleep(RESTART_SECONDS)


def wait_for_tick() -> None:
    """Wait until a tick has passed, of the length that the test has set."""
    since = time.monotonic()
    # A file that is being written is empty for a moment.
    while time.monotonic() - since < float((MACHINE / "tick_seconds").read_text() or "inf"):
        time.sleep(0.02)
    if (MACHINE / "before_tick").exists():
        subprocess.run(["/bin/bash", str(MACHINE / "before_tick")], check=True)


def start(name: str) -> None:
    """Start a unit, apart from the caller."""
    log = (MACHINE / "systemctl.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, __file__, "--supervise", name],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    (MACHINE / f"{name}.supervisor").write_text(str(process.pid))


def is_active(name: str) -> bool:
    """Return whether a unit runs."""
    file = MACHINE / f"{name}.supervisor"
    return file.exists() and Path(f"/proc/{file.read_text()}").exists()


def stop_unit(name: str) -> None:
    """Stop a unit and wait for its end."""
    supervisor = int((MACHINE / f"{name}.supervisor").read_text())
    os.kill(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while Path(f"/proc/{supervisor}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)


def main(arguments: list[str]) -> None:
    """Do what systemctl would do with these arguments."""
    if arguments[0] == "--supervise":
        return supervise(arguments[1])
    with (MACHINE / "calls").open("a") as calls:
        print("systemctl", *arguments, file=calls)
    names = [argument for argument in arguments if argument.startswith("tunesmith-")]
    if arguments[0] in ("start", "restart") or "--now" in arguments:
        for name in names:
            if arguments[0] == "restart" and is_active(name):
                stop_unit(name)
            elif is_active(name):
                continue
            if (MACHINE / "broken_units").exists() and name in (MACHINE / "broken_units").read_text():
                sys.exit(1)
            start(name)
    elif arguments[0] == "stop":
        for name in names:
            stop_unit(name)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
