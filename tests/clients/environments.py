"""The environments of clients, apart from ours: virtual ones for Python, and one folder of packages for Node.

They are built from pinned requirements, and rebuilt when those change.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.clients.catalogue import ClientProgram, Runtime

FOLDER = Path(__file__).parent
CACHE = FOLDER.parents[1] / ".venv-clients"


class EnvironmentMissing(Exception):
    """A program that the machine must have is missing."""


def build_environments(clients: Iterable[ClientProgram]) -> None:
    """Build the environments of these clients, unless they are up to date; raises EnvironmentMissing."""
    for runtime, name in sorted({(client.runtime, client.environment) for client in clients}):
        match runtime:
            case Runtime.python:
                _build(name, FOLDER / "requirements" / f"{name}.txt", _install_python)
            case Runtime.node:
                _build(name, FOLDER / "node" / "package-lock.json", _install_node)
            case Runtime.java:
                _require("java", "a JDK, such as openjdk-17-jdk-headless")


def command_of(client: ClientProgram) -> list[str]:
    """Return the command that runs a client's program."""
    path = str(FOLDER / client.runtime / client.program)
    match client.runtime:
        case Runtime.python:
            return [str(CACHE / client.environment / "bin" / "python"), path]
        case Runtime.node:
            # Node resolves packages from the folder of the program.
            folder = CACHE / client.environment
            return [str(folder / "node_modules" / ".bin" / "node"), str(folder / client.program)]
        case Runtime.java:
            return ["java", "-Dfile.encoding=UTF-8", path]


def version_of(client: ClientProgram) -> str:
    """Return the version of the installed client."""
    match client.runtime:
        case Runtime.python:
            pin = rf"^{re.escape(client.package)}==(\S+)"
            text = (FOLDER / "requirements" / f"{client.environment}.txt").read_text()
            (version,) = re.findall(pin, text, re.MULTILINE)
            return str(version)
        case Runtime.node:
            lock = json.loads((FOLDER / "node" / "package-lock.json").read_text())
            return str(lock["packages"][f"node_modules/{client.package}"]["version"])
        case Runtime.java:
            printed = subprocess.run(["java", "--version"], capture_output=True, text=True, check=True)
            return printed.stdout.split()[1]


def _build(name: str, pins: Path, install: Callable[[Path, Path], None]) -> None:
    folder, digest = CACHE / name, hashlib.sha256(pins.read_bytes()).hexdigest()
    mark = folder / "installed"
    if not (mark.exists() and mark.read_text() == digest):
        print(f"Installing {name} …", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(folder, pins)
        mark.write_text(digest)
    if pins.name == "package-lock.json":
        for program in (FOLDER / "node").glob("*.mjs"):
            shutil.copy(program, folder)


def _install_python(folder: Path, pins: Path) -> None:
    _require("uv", "uv: pip install uv")
    python = str(folder / "bin" / "python")
    version = ".".join(map(str, sys.version_info[:2]))
    subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", version, str(folder)], check=True)
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, "-r", str(pins)], check=True)


def _install_node(folder: Path, pins: Path) -> None:
    _require("npm", "npm, which also installs the version of Node that the clients need")
    for file in (pins, pins.with_name("package.json")):
        shutil.copy(file, folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)


def _require(program: str, needed: str) -> None:
    if shutil.which(program) is None:
        raise EnvironmentMissing(f"{program} is missing. The client matrix needs {needed}.")
