"""Faults of processes: killed, asked to stop, suspended, or killed at a system call that touches a file."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import psutil

from tests.chaos.faults.fault import Fault
from tests.chaos.platforms import LEASE_SECONDS, Platform, Suspension
from tests.chaos.process import ManagedProcess, has_role, send

# Some suspensions end before the lease does, and some after it.
SUSPEND_SECONDS = (0.3 * LEASE_SECONDS, 1.6 * LEASE_SECONDS)
API_SUSPEND_SECONDS = (1.0, 4.0)
TRACE_SECONDS = 4.0
# Of a process whose end its tracer has seen, and of one that was killed while its tracer left it.
END_SECONDS, LATE_END_SECONDS = 30.0, 0.5
MAX_EVENT = 8
FILE_EVENTS = ("rename,renameat,renameat2", "fsync,fdatasync", "openat", "unlink,unlinkat,rmdir", "mkdir")


def kill_worker(platform: Platform, choose: random.Random) -> bool:
    """Kill one or two workers."""
    workers = platform.find("worker")
    choose.shuffle(workers)
    ended = [_end(platform, worker.pid, signal.SIGKILL) for worker in workers[: choose.choice([1, 1, 2])]]
    return any(ended)


def terminate_worker(platform: Platform, choose: random.Random) -> bool:
    """Ask a worker to stop."""
    return _end_one(platform, [worker.pid for worker in platform.find("worker")], signal.SIGTERM, choose)


def kill_api(platform: Platform, choose: random.Random) -> bool:
    """Kill an API process."""
    return _end_one(platform, [api.pid for api in platform.apis], signal.SIGKILL, choose)


def terminate_api(platform: Platform, choose: random.Random) -> bool:
    """Ask an API process to stop."""
    return _end_one(platform, [api.pid for api in platform.apis], signal.SIGTERM, choose)


def kill_guard(platform: Platform, choose: random.Random) -> bool:
    """Kill the guard of a program."""
    return _end_one(platform, [guard.pid for guard in platform.find("guard")], signal.SIGKILL, choose)


def kill_program(platform: Platform, choose: random.Random) -> bool:
    """Kill a program."""
    return _end_one(platform, [program.pid for program in platform.find("program")], signal.SIGKILL, choose)


def suspend_worker(platform: Platform, choose: random.Random) -> bool:
    """Suspend a worker, but not its guard and program."""
    return _suspend(platform, _choose_one(platform.find("worker"), choose), choose.uniform(*SUSPEND_SECONDS))


def suspend_program(platform: Platform, choose: random.Random) -> bool:
    """Suspend a program."""
    return _suspend(platform, _choose_one(platform.find("program"), choose), choose.uniform(*SUSPEND_SECONDS))


def suspend_tree(platform: Platform, choose: random.Random) -> bool:
    """Suspend a worker with its guards and programs, as a virtual machine that is paused."""
    workers = _choose_one(platform.find("worker"), choose)
    tree = [*workers, *(child for worker in workers for child in _list_children(worker))]
    return _suspend(platform, tree, choose.uniform(*SUSPEND_SECONDS))


def suspend_api(platform: Platform, choose: random.Random) -> bool:
    """Suspend an API process."""
    api, processes = choose.choice(platform.apis), []
    with suppress(psutil.NoSuchProcess):
        processes = [psutil.Process(api.pid)] if api.is_running else []
    return _suspend(platform, processes, choose.uniform(*API_SUSPEND_SECONDS))


def kill_worker_with_suspended_guard(platform: Platform, choose: random.Random) -> bool:
    """Suspend a guard, and kill its worker meanwhile: the guard must act as soon as it continues."""
    guards = _choose_one(platform.find("guard"), choose)
    with _suspended(platform, guards):
        parents = [parent for guard in guards if (parent := _find_parent(guard)) is not None]
        killed = [_end(platform, parent, signal.SIGKILL) for parent in parents]
        time.sleep(choose.uniform(*API_SUSPEND_SECONDS))
    return any(killed)


def kill_at_file_event(platform: Platform, choose: random.Random) -> bool:
    """Kill a process at its next rename, fsync, open, unlink or mkdir, in the middle of a publication."""
    role = choose.choice(["worker", "worker", "program", "api"])
    pids = (
        [api.pid for api in platform.apis]
        if role == "api"
        else [process.pid for process in platform.find(role)]
    )
    if not pids:
        return False
    pid = choose.choice(pids)
    inject = f"inject={choose.choice(FILE_EVENTS)}:signal=SIGKILL:when={choose.randint(1, MAX_EVENT)}"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(pid)]
    managed = platform.find_managed(pid)
    with managed.may_end() if managed is not None else nullcontext():
        tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            status = tracer.wait(TRACE_SECONDS)  # It ends with the process that it traces.
        except subprocess.TimeoutExpired:
            tracer.terminate()
            tracer.wait()
            return _wait_until_ended(pid, managed, LATE_END_SECONDS)
        # Another status is that of a tracer that may not trace, or finds no process.
        return status == 0 and _wait_until_ended(pid, managed, END_SECONDS)


def explain_missing_strace(platform: Platform) -> str | None:
    """Explain that strace is missing."""
    return None if shutil.which("strace") else "strace is not installed"


FAULTS = [
    Fault("worker killed", kill_worker, 8),
    Fault("worker terminated", terminate_worker, 2),
    Fault("API killed", kill_api, 4),
    Fault("API terminated", terminate_api, 1),
    Fault("guard killed", kill_guard, 6),
    Fault("program killed", kill_program, 6),
    Fault("worker suspended", suspend_worker, 5),
    Fault("program suspended", suspend_program, 4),
    Fault("worker, guard and program suspended", suspend_tree, 4),
    Fault("API suspended", suspend_api, 3),
    Fault("guard suspended, worker killed", kill_worker_with_suspended_guard, 2),
    Fault("killed at a file event", kill_at_file_event, 8, explain_missing=explain_missing_strace),
]


def _end(platform: Platform, pid: int, number: signal.Signals) -> bool:
    managed = platform.find_managed(pid)
    return managed.end(number) if managed is not None else send(pid, number)


def _end_one(platform: Platform, pids: Sequence[int], number: signal.Signals, choose: random.Random) -> bool:
    return bool(pids) and _end(platform, choose.choice(pids), number)


def _choose_one(processes: Sequence[psutil.Process], choose: random.Random) -> list[psutil.Process]:
    return [choose.choice(processes)] if processes else []


def _suspend(platform: Platform, processes: Sequence[psutil.Process], seconds: float) -> bool:
    with _suspended(platform, processes):
        if processes:
            time.sleep(seconds)
    return bool(processes)


@contextmanager
def _suspended(platform: Platform, processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Suspend processes until the block ends, and record which programs could not be stopped meanwhile."""
    affected = [process.pid for process in processes]
    guards = [process for process in processes if has_role(process, "guard")]
    affected += [child.pid for guard in guards for child in _list_children(guard)]
    started = time.monotonic()
    for process in processes:
        send(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            send(process.pid, signal.SIGCONT)
        if processes:
            platform.suspensions.append(Suspension(frozenset(affected), started, time.monotonic()))


def _find_parent(guard: psutil.Process) -> int | None:
    """Return the process id of a guard's worker, or None if one of the two has ended."""
    try:
        parent: int = guard.ppid()
    except psutil.NoSuchProcess:
        return None
    return parent if parent > 1 else None


def _list_children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def _wait_until_ended(pid: int, managed: ManagedProcess | None, seconds: float) -> bool:
    """Wait for a process that was killed: its tracer sees that before its parent does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        is_running = _is_alive(pid) if managed is None else managed.is_running and managed.pid == pid
        if not is_running:
            return True
        time.sleep(0.02)
    return False


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
