"""The processes of a program: everything that it has started, however indirectly, and how to end it all.

A process group does not contain them: torch's launcher starts each rank in a session of its own, and an
engine's workers outlive the engine that started them. Two facts find them all the same. A process inherits
the variable `TUNESMITH_PROGRAM` of its environment from its parent. And on Linux a process that has called
`adopt_orphans` stays the ancestor of everything below it, even where a parent between them has ended.
"""

import contextlib
import ctypes
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

MARKER = "TUNESMITH_PROGRAM"
# Torch's launcher sets it for its ranks.
LAUNCHER_VARIABLE = "TORCHELASTIC_RUN_ID"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PARENT_POLL_SECONDS = 0.5
_KILL_POLL_SECONDS = 0.02
_MAX_KILL_POLL_SECONDS = 1.0


def new_marker() -> str:
    """Return a new value of the marker, which names this process as the owner of the marked ones."""
    return f"{_pid_namespace()}/{os.getpid()}/{secrets.token_hex(8)}"


def mark(marker: str) -> dict[str, str]:
    """Return the variables with which a process and all that it starts carry the marker.

    The title that vLLM gives each of its processes would overwrite their environment, without the second.
    """
    return {MARKER: marker, "SPT_NOENV": "1"}


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(*, use_kernel: bool = sys.platform == "linux") -> None:
    """Kill this process when its parent ends, or at once if that has already happened.

    A process that a person has started may outlive its shell: there it has no effect. The kernel sends its
    signal when the *thread* that started this process ends, so it must be a thread that lives as long as its
    process. Where the kernel has no such signal, a thread of this process polls.
    """
    if MARKER not in os.environ and LAUNCHER_VARIABLE not in os.environ:
        return
    parent = os.getppid()
    if use_kernel:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_poll_parent, args=(parent,), name="parent", daemon=True).start()
    if os.getppid() != parent or _has_lost_parent(parent):
        os.kill(os.getpid(), signal.SIGKILL)


def find_processes(marker: str, ancestor: int | None = None) -> list[psutil.Process]:
    """Return the running processes that carry the marker, or are below one that does or below `ancestor`.

    This process and `ancestor` are not among them.
    """
    processes, parents, members = {}, {}, set() if ancestor is None else {ancestor}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            processes[process.pid], parents[process.pid] = process, process.ppid()
            if _read_marker(process) == marker:
                members.add(process.pid)
    while below := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= below
    members -= {os.getpid(), ancestor}
    return [processes[pid] for pid in members if pid in processes and is_running(pid)]


def kill_processes(marker: str, ancestor: int | None = None) -> None:
    """Kill the processes that `find_processes` returns, and return when none of them is left."""
    forbidden: set[int] = set()
    pause = _KILL_POLL_SECONDS
    while found := [one for one in find_processes(marker, ancestor) if one.pid not in forbidden]:
        # A suspended process starts no further one between the search and its end.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            forbidden |= {process.pid for process in found if not _send(process, number)}
            found = find_processes(marker, ancestor)
        time.sleep(pause)
        # A process in a system call that cannot be interrupted takes as long as the call.
        pause = min(2 * pause, _MAX_KILL_POLL_SECONDS)


def kill_abandoned_processes() -> None:
    """Kill the marked processes of owners on this host that have ended, such as a worker killed with -9.

    Guards do that at once; this is for a guard that is suspended, or was killed together with its owner.
    """
    for marker in set(_list_markers()):
        namespace, owner, _ = marker.split("/")
        # A process id means something only in its own namespace: there may be several containers.
        if namespace == _pid_namespace() and not is_running(int(owner)):
            kill_processes(marker)


def is_running(pid: int) -> bool:
    """Return whether the process exists and is more than a status that its parent has not read yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _list_markers() -> Iterator[str]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # A program can give its own children any value.
            if re.fullmatch(r"[^/]+/[0-9]{1,10}/[^/]+", marker := _read_marker(process) or ""):
                yield marker


def _read_marker(process: psutil.Process) -> str | None:
    """Return the process's marker; None if it has none, or belongs to another user."""
    try:
        marker: str | None = process.environ().get(MARKER)
    except psutil.Error:
        return None
    return marker


def _has_lost_parent(parent: int) -> bool:
    """Return whether the parent of a marked process is neither marked nor the owner: it adopted this one."""
    marker = os.environ.get(MARKER)
    # 0 is a parent outside of this namespace.
    if marker is None or parent == 0 or marker.split("/")[1] == str(parent):
        return False
    try:
        return bool(psutil.Process(parent).environ().get(MARKER) != marker)
    except psutil.AccessDenied:
        return False
    except psutil.NoSuchProcess:
        return True


def _poll_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal; return False if this user must not."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
    return True


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "host"
