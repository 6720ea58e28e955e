"""Several processes behind one port.

A parent starts them, starts dead ones again, and ends them in order.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.gateway.metrics import REQUEST_METRICS

# A worker that dies within this time of its start would only die again.
SETTLED_SECONDS = 1.0
SHARE_SECONDS = 1.0


class ProcessSupervisor:
    """Forks before any event loop or thread exists; `work` runs in each child until SIGTERM."""

    def __init__(self, count: int, work: Callable[["SharedMetrics"], None]) -> None:
        self.count = count
        self.work = work
        self.running: dict[int, tuple[int, float]] = {}
        self.stopping = False

    def run(self) -> None:
        """Keep the workers running until a signal comes; the children end when this process does."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="gateway-counts-") as folder:
            # The children hold the other end; it tells them by its end that nobody looks after them.
            self.alive, self.living = os.pipe()
            for index in range(self.count):
                self._start(index, Path(folder))
            while self.running:
                self._await_one(Path(folder))

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
            os.close(self.living)
            self.work(SharedMetrics(folder, index, self.alive))
            status = 0
        finally:
            os._exit(status)

    def _await_one(self, folder: Path) -> None:
        child, _ = os.wait()
        index, since = self.running.pop(child)
        if self.stopping:
            return
        time.sleep(max(0.0, SETTLED_SECONDS - (time.monotonic() - since)))
        if not self.stopping:
            self._start(index, folder)

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True
        for child in self.running:
            os.kill(child, signal.SIGTERM)


class SharedMetrics:
    """What each worker has counted, in a file of its own, so that any of them can answer for all."""

    def __init__(self, folder: Path, index: int, parent: int) -> None:
        self.folder = folder
        self.index = index
        self.own = folder / f"{index}.json"
        self.parent = parent
        if self.own.exists():
            # Of the worker that died in this place: counters must not go backwards.
            REQUEST_METRICS.add(json.loads(self.own.read_text()))
        REQUEST_METRICS.others = self.others

    def write(self) -> None:
        """Show what this worker has counted so far."""
        draft = self.own.with_suffix(".draft")
        draft.write_text(json.dumps(REQUEST_METRICS.as_json()))
        draft.replace(self.own)

    def others(self) -> list[dict[str, Any]]:
        """What the others have counted, up to a second ago."""
        return [json.loads(file.read_text()) for file in self.folder.glob("*.json") if file != self.own]
