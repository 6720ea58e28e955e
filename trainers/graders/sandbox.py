"""Python graders: code of a job's owner, run by bubblewrap in a sandbox for one completion each.

The child sees the interpreter, its libraries and packages, a `/tmp` of its own in memory, and nothing else of
the host: no network, no environment, no process, no device but null, zero and random. System calls that
start a process or a thread, open a socket, or allocate memory outside the limit are refused by seccomp;
memory, processor time, files and output are limited by the kernel, and the whole sandbox dies with the time
limit or with this process. It is off unless the operator allows it, and refused where a part is missing.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from trainers.configs.graders import PythonGrader
from trainers.graders.result import GradeFailed, GraderErrors
from trainers.graders.seccomp import denial_filter
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, ProgramError

ALLOWED_VARIABLE: Final = "TUNESMITH_PYTHON_GRADERS"
SECONDS_VARIABLE: Final = "TUNESMITH_PYTHON_GRADER_SECONDS"
DEFAULT_SECONDS: Final = 60.0
PROBE_SECONDS: Final = 30.0
# OpenAI's limit of memory; its disk of 1 GB is memory here.
MEMORY_BYTES: Final = 2 << 30
TMP_BYTES: Final = 64 << 20
OUTPUT_BYTES: Final = 1 << 20
MAX_DETAIL_CHARACTERS: Final = 2000
PROGRAM: Final = Path(__file__).with_name("sandbox_program.py")
_LIBRARY_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_PROBE = "def grade(sample, item):\n    return 1"


class SandboxUnavailable(ProgramError):
    """This host has no sandbox for Python graders."""

    code = ErrorCode.capability_missing


class PythonGradersOff(ConfigInvalid):
    """The operator has not allowed Python graders."""


def require_sandbox() -> None:
    """Raise PythonGradersOff or SandboxUnavailable unless Python graders can run here."""
    if os.environ.get(ALLOWED_VARIABLE, "").lower() not in ("1", "true", "yes", "on"):
        raise PythonGradersOff(
            "Python graders are off: they run code of a job's owner.",
            f"The operator allows them by {ALLOWED_VARIABLE}=true on the API and the workers.",
        )
    fault = find_sandbox_fault()
    if fault is not None:
        raise SandboxUnavailable(f"This host cannot run Python graders: {fault}", _hint(fault))


@lru_cache
def find_sandbox_fault() -> str | None:
    """Return why this host has no sandbox, as the end of a sentence; None if it has one."""
    if denial_filter() is None:
        return f"the sandbox needs Linux on x86_64 or aarch64, not {sys.platform} on {os.uname().machine}."
    if shutil.which("bwrap") is None:
        return "bubblewrap (`bwrap`) is not installed."
    try:
        output, errors, status = _run(_PROBE, {"sample": {}, "item": {}}, PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"bubblewrap did not create a sandbox within {PROBE_SECONDS:g} s."
    except OSError as error:
        return f"bubblewrap cannot be started: {error}"
    if status == 0 and output.startswith("{"):
        return None
    reason = errors.strip().splitlines()[-1:] or [f"exit status {status}"]
    return f"bubblewrap cannot create a sandbox: {reason[0]}"


def run_python_grader(grader: PythonGrader, values: Mapping[str, Any]) -> float:
    """Return the number that `grade(sample, item)` returns; raises GradeFailed."""
    seconds = float(os.environ.get(SECONDS_VARIABLE) or DEFAULT_SECONDS)
    try:
        output, errors, status = _run(grader.source, values, seconds)
    except subprocess.TimeoutExpired:
        raise _fail(f"it did not end within {seconds:g} s", is_silent=True) from None
    except OSError as error:
        raise _fail_here(f"{type(error).__name__}: {error}") from None
    try:
        result = json.loads(output)
        fault, score = result.get("error"), result.get("score")
    except (ValueError, AttributeError, RecursionError):
        reason = (errors.strip().splitlines() or [""])[-1]
        if reason.startswith("bwrap:"):
            raise _fail_here(reason) from None
        raise _fail(f"it ended with status {status} and no score. {reason}") from None
    # The grader can write to the same file.
    if fault is not None or type(score) not in (int, float) or not math.isfinite(score):
        raise _fail(str(fault or "its score is not a finite number"))
    return float(score)


def _run(source: str, values: Mapping[str, Any], seconds: float) -> tuple[str, str, int]:
    """Return the output, the error output and the exit status of a sandbox; raises TimeoutExpired."""
    request = {
        "source": source,
        **values,
        "limits": {"memory": MEMORY_BYTES, "output": OUTPUT_BYTES, "seconds": int(seconds) + 1},
    }
    denied = denial_filter()
    assert denied is not None
    with (
        tempfile.TemporaryFile() as program,
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        # Files, unlike pipes, block neither side, and the kernel limits their size.
        program.write(denied)
        program.seek(0)
        stdin.write(json.dumps(request, default=list).encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        command = [*_sandbox_command(), "--seccomp", str(program.fileno()), *_interpreter_command()]
        done = subprocess.run(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[program.fileno()],
            env={"PATH": os.environ.get("PATH", os.defpath)},
            timeout=seconds,
            check=False,
        )
        return _read(stdout), _read(stderr), done.returncode


@lru_cache
def _sandbox_command() -> Sequence[str]:
    bind = [part for path in _read_only_paths() for part in ("--ro-bind", path, path)]
    links = [
        part
        for path in _LIBRARY_FOLDERS
        if Path(path).is_symlink()
        for part in ("--symlink", str(Path(path).readlink()), path)
    ]
    devices = [part for path in _DEVICES for part in ("--dev-bind", path, path)]
    packages = sysconfig.get_path("purelib")
    return (
        "bwrap",
        *("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--cap-drop", "ALL", "--clearenv"),
        *("--setenv", "LANG", "C.UTF-8", "--setenv", "TMPDIR", "/tmp"),  # noqa: S108  # In the sandbox.
        # A library with threads of its own gets one, as none can be started.
        *("--setenv", "OMP_NUM_THREADS", "1", "--setenv", "OPENBLAS_NUM_THREADS", "1"),
        *bind,
        *links,
        *devices,
        *("--ro-bind", packages, "/packages", "--ro-bind", str(PROGRAM), "/program.py"),
        *("--size", str(TMP_BYTES), "--tmpfs", "/tmp"),  # noqa: S108
        *("--remount-ro", "/", "--chdir", "/tmp"),  # noqa: S108
    )


def _interpreter_command() -> Sequence[str]:
    return (str(_interpreter()), "-I", "-B", "-X", "utf8", "/program.py")


def _interpreter() -> Path:
    # Of the installation, not of a virtual environment, whose own path would be another folder to show.
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _read_only_paths() -> Iterator[str]:
    """Yield the folders of shared libraries, and the interpreter with its library."""
    yield from (path for path in _LIBRARY_FOLDERS if Path(path).exists() and not Path(path).is_symlink())
    shown = [str(_interpreter()), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    library = Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent")
    shown += [str(path) for path in library.glob("libpython*.so*")]
    yield from (path for path in dict.fromkeys(shown) if not path.startswith(("/usr/lib/", "/lib/")))


def _read(file: Any) -> str:
    file.seek(0)
    content: bytes = file.read(OUTPUT_BYTES)
    return content.decode("utf-8", "replace")


def _hint(fault: str) -> str:
    if "bwrap" in fault and "installed" in fault:
        return "Install it, for example with `apt-get install bubblewrap`."
    return (
        "Python graders need user namespaces: in a container, allow them by its seccomp profile; on Ubuntu, "
        "by an AppArmor profile for bwrap."
    )


def _fail(reason: str, is_silent: bool = False) -> GradeFailed:
    reason = reason[:MAX_DETAIL_CHARACTERS]
    errors = GraderErrors(
        python_grader_runtime_error=True,
        python_grader_runtime_error_details=reason,
        unresponsive_reward_error=is_silent,
    )
    return GradeFailed(f"the Python grader failed: {reason}", errors)


def _fail_here(reason: str) -> GradeFailed:
    errors = GraderErrors(python_grader_server_error=True, python_grader_server_error_type="sandbox_failed")
    return GradeFailed(f"the sandbox of the Python grader failed: {reason}", errors)
