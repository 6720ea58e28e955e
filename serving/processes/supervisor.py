"""Several processes on one port: a parent forks them, restarts dead ones and stops them."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.processes.shared_metrics import SharedMetrics

# A process that dies within this time of its start is restarted only after it, to avoid a busy loop.
MIN_RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class ServerProcess:
    """One of the processes, as seen by itself; `parent_alive` is readable once the parent is dead."""

    index: int
    metrics: SharedMetrics
    parent_alive: int


class ProcessSupervisor:
    """Forks processes before any event loop or thread exists; `work` runs in each of them until SIGTERM."""

    def __init__(self, count: int, work: Callable[[ServerProcess], None]) -> None:
        self.count = count
        self.work = work
        self.running: dict[int, tuple[int, float]] = {}
        self.stopping = False

    def run(self) -> None:
        """Keep the processes running until a signal; they end when this process ends."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="tunesmith-metrics-") as folder:
            # The children wait for the end of this pipe, which the kernel closes when the parent dies.
            self.parent_alive, self.write_end = os.pipe()
            for index in range(self.count):
                self._start(index, Path(folder))
            while self.running:
                self._wait_and_restart(Path(folder))

    def _start(self, index: int, folder: Path) -> None:
        child = os.fork()
        if child:
            self.running[child] = index, time.monotonic()
            if self.stopping:
                os.kill(child, signal.SIGTERM)
            return
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.close(self.write_end)
            self.work(ServerProcess(index, SharedMetrics(folder, index), self.parent_alive))
            status = 0
        finally:
            os._exit(status)

    def _wait_and_restart(self, folder: Path) -> None:
        child, _ = os.wait()
        index, started_at = self.running.pop(child)
        if self.stopping:
            return
        time.sleep(max(0.0, MIN_RESTART_SECONDS - (time.monotonic() - started_at)))
        if not self.stopping:
            self._start(index, folder)

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True
        for child in self.running:
            os.kill(child, signal.SIGTERM)


def reserve_port(host: str, port: int, shared: bool) -> socket.socket:
    """Return a bound socket that does not listen; raises OSError if another service listens on the port.

    The processes of a shared port bind their own sockets to it while this one is open.
    """
    if shared:
        # Another service with a shared port would accept a part of the connections.
        bind_socket(host, port, shared=False).close()
    return bind_socket(host, port, shared)


def bind_socket(host: str, port: int, shared: bool) -> socket.socket:
    """Return a bound socket that does not listen yet.

    If `shared`, each process can bind its own socket to the port, and the kernel distributes the connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
