"""Several gateway processes on one port: a parent starts them, restarts dead ones and stops them."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.gateway.metrics import REQUEST_METRICS

# A process that dies within this time of its start is restarted only after it, to avoid a busy loop.
MIN_RESTART_SECONDS = 1.0
SHARE_SECONDS = 1.0


class ProcessSupervisor:
    """Forks processes before any event loop or thread exists; `work` runs in each of them until SIGTERM."""

    def __init__(self, count: int, work: Callable[["SharedMetrics"], None]) -> None:
        self.count = count
        self.work = work
        self.running: dict[int, tuple[int, float]] = {}
        self.stopping = False

    def run(self) -> None:
        """Keep the processes running until a signal; they end when this process ends."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="gateway-metrics-") as folder:
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
            self.work(SharedMetrics(folder, index, self.parent_alive))
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


class SharedMetrics:
    """The metrics of each process in a file of its own, so that any process can report those of all.

    `parent_alive` is a file descriptor that reaches its end when the parent dies.
    """

    def __init__(self, folder: Path, index: int, parent_alive: int) -> None:
        self.folder = folder
        self.index = index
        self.file = folder / f"{index}.json"
        self.parent_alive = parent_alive
        if self.file.exists():
            # The metrics of the process that died here: counters must not decrease.
            REQUEST_METRICS.add(json.loads(self.file.read_text()))
        REQUEST_METRICS.read_other_processes = self._read_others

    def write(self) -> None:
        """Publish the current metrics of this process."""
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps(REQUEST_METRICS.to_json()))
        draft.replace(self.file)

    def _read_others(self) -> list[dict[str, Any]]:
        """Return the metrics of the other processes, up to a second old."""
        return [json.loads(file.read_text()) for file in self.folder.glob("*.json") if file != self.file]
