"""The fork server of a worker: a process that has imported what programs need, and forks to start one.

For each request it forks a guard, which forks its program. Both are what a cold start makes of them: the same
guard, session, process group, marker, working directory and signals. The server itself runs no program and
reads no file of a run, so that nothing passes from one run to the next; it ends when its socket closes.

    python -m workers.hosts.fork_server MODULE…
"""

import ast
import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import logging
import os
import runpy
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from trainers.runtime.process_tree import MARKER
from workers.hosts.guard import CHANNEL, guard_program
from workers.hosts.guard_options import OWN_PREFIX, ForkRequest, GuardOptions

MAX_REQUEST_BYTES = 1 << 17
_PR_SET_NAME = 15
# Fields of /proc/self/stat, counted from the one after the name of the program.
_ENVIRONMENT_START, _ENVIRONMENT_END = 47, 48


@dataclass(frozen=True)
class ForkFiles:
    """The descriptors that come with a request."""

    channel: int
    log: int
    status: int
    """A pipe to which the guard writes its exit status."""


def main(modules: Sequence[str]) -> NoReturn:
    """Import the dependencies of the modules, then serve requests until the worker is gone."""
    import_all(modules)
    # Objects that are never freed would otherwise be copied to each child, page by page.
    gc.collect()
    gc.freeze()
    control = socket.socket(fileno=os.dup(CHANNEL))
    control.send(json.dumps({"memory_bytes": _read_anonymous_bytes()}).encode())
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 3)
        _reap_guards()
        if not request:
            sys.exit(0)
        files = ForkFiles(*descriptors)
        with warnings.catch_warnings():
            # From Python 3.12 on. The threads of this process are those of libraries that handle a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            guard = os.fork()
        if not guard:
            control.close()
            _become_guard(ForkRequest(**json.loads(request)), files)
        process = os.pidfd_open(guard)
        for descriptor in descriptors:
            os.close(descriptor)
        socket.send_fds(control, [json.dumps({"pid": guard}).encode()], [process])
        os.close(process)


def import_all(modules: Sequence[str]) -> None:
    """Import what each of the modules imports when it starts, but not the modules themselves."""
    for module in modules:
        # A program whose packages are missing here is not started here.
        with contextlib.suppress(ImportError):
            _import_dependencies(module)


def _import_dependencies(module: str) -> None:
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    if spec is None or spec.origin is None:
        return
    for node in ast.parse(Path(spec.origin).read_bytes()).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imported = importlib.import_module(node.module)
            for alias in node.names:
                # transformers and TRL import a class's module when the class is first used.
                with contextlib.suppress(AttributeError):
                    getattr(imported, alias.name)


def _reap_guards() -> None:
    """Reap the guards that have ended, whose exit status the worker has read from a pipe."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become_guard(request: ForkRequest, files: ForkFiles) -> NoReturn:
    """Continue as the guard of one program, and end with its exit status."""
    status = 1
    try:
        os.setsid()
        os.dup2(files.channel, CHANNEL)
        for stream in (1, 2):
            os.dup2(files.log, stream)
        os.close(files.channel)
        os.close(files.log)
        _set_marker(request.marker)
        _set_name("guard")
        options = GuardOptions.from_json(request.options)
        status = guard_program(options, lambda: _run_program(request, files))
    except SystemExit as exit:
        status = int(exit.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BrokenPipeError):  # The worker is gone.
            os.write(files.status, str(status).encode())
        os._exit(status)


def _run_program(request: ForkRequest, files: ForkFiles) -> NoReturn:
    """Run the module as `python -m` does, and end this process as the interpreter does."""
    os.close(files.status)
    _set_name(request.module.rpartition(".")[2])
    sys.path[0] = str(Path.cwd())
    sys.argv = ["-m", *request.arguments]
    for name in [name for name in os.environ if name.startswith(OWN_PREFIX) and name != MARKER]:
        del os.environ[name]
    os.environ.update(request.variables)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Otherwise the same numbers in each program.
    gc.enable()
    status = 0
    try:
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        status = _exit_status(exit)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_status(exit: SystemExit) -> int:
    if exit.code is None or isinstance(exit.code, int):
        return exit.code or 0
    sys.stderr.write(f"{exit.code}\n")
    return 1


def _set_marker(marker: str) -> None:
    """Replace the marker of this process, also where the kernel shows its environment to others."""
    old, new = f"{MARKER}={os.environ[MARKER]}".encode(), f"{MARKER}={marker}".encode()
    assert len(old) == len(new), "the server and its programs have the same owner"
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ENVIRONMENT_START]), int(fields[_ENVIRONMENT_END])
    at = ctypes.string_at(start, end - start).index(old + b"\0")
    ctypes.memmove(start + at, new, len(new))
    os.environ[MARKER] = marker


def _set_name(name: str) -> None:
    """Set the name that `ps` and `top` show, of which the kernel keeps 15 characters."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _read_anonymous_bytes() -> int:
    """Return the memory of this process without the pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
