"""Checks of the engines of this host, and of the address on which they listen."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.settings import Settings
from app.workers.host_hardware import find_version
from serving.engines import ENGINES
from trainers.configs import EngineKind
from workers.doctor.check_result import CheckResult
from workers.engines.engine_start import EngineProcessFailed, hold_address

# vLLM imports torch before it prints its version.
VERSION_TIMEOUT_SECONDS = 120
PACKAGES = {EngineKind.hf: "transformers", EngineKind.mlx: "mlx-lm"}
MAX_VERSION_CHARACTERS = 80


def check_engines(settings: Settings) -> Iterator[CheckResult]:
    """Yield a check of each engine that is installed or named in the settings, and that of their address."""
    results = [
        result
        for kind in EngineKind
        if (result := _check_engine(kind, settings.engine_commands.get(kind, []))) is not None
    ]
    if not results:
        fix = "Install the extra `trainer` for `hf`, or name an engine in TUNESMITH_ENGINE_COMMANDS."
        results = [CheckResult.warning("engines", "none: this worker cannot hold deployments", fix)]
    yield from results
    yield _check_address(settings.engine_host)


def _check_engine(kind: EngineKind, command: Sequence[str]) -> CheckResult | None:
    """Return the check of an engine, or None if it is not installed and no setting names it."""
    name = f"engine {kind}"
    if not command and kind in PACKAGES:
        version = find_version(PACKAGES[kind])
        return None if version is None else CheckResult.ok(name, f"{PACKAGES[kind]} {version}")
    program = (command or ENGINES[kind].default_program)[0]
    if shutil.which(program) is None:
        if not command:
            return None
        fix = "Correct TUNESMITH_ENGINE_COMMANDS: it must name a program of this host."
        return CheckResult.error(name, f"{program} does not exist or cannot be executed", fix)
    if (missing := _find_missing_file(command)) is not None:
        fix = "Correct TUNESMITH_ENGINE_COMMANDS, or install what it names."
        return CheckResult.error(name, f"{missing} does not exist", fix)
    return _ask_version(name, program)


def _find_missing_file(command: Sequence[str]) -> str | None:
    """Return the script or module of a Python interpreter that does not exist here."""
    if len(command) < 2 or not Path(command[0]).name.startswith("python"):
        return None
    if (
        command[1] == "-m"
        and len(command) > 2
        and find_version("tunesmith")
        and command[2].startswith("serving")
    ):
        return None if importlib.util.find_spec(command[2]) else command[2]
    return command[1] if command[1].endswith(".py") and not Path(command[1]).is_file() else None


def _ask_version(name: str, program: str) -> CheckResult:
    """Return what the program prints for `--version`."""
    fix = f"Run `{program} --version` on this host, and install the engine again if it fails."
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return CheckResult.error(name, f"{program} --version: {error}", fix)
    last = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2][:MAX_VERSION_CHARACTERS]
    if done.returncode:
        return CheckResult.error(name, f"{program} --version: exit status {done.returncode}: {last}", fix)
    return CheckResult.ok(name, f"{program}: {last}")


def _check_address(host: str) -> CheckResult:
    name = "engine address"
    try:
        _, port = hold_address(host)
    except EngineProcessFailed as error:
        return CheckResult.error(name, str(error), "Set TUNESMITH_ENGINE_HOST to an address of this host.")
    port.release()
    return CheckResult.ok(name, f"{host}: ports are available, such as {port.number}")
