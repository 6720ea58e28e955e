"""Exporter: sends the attempts in a spool folder to the tracking services, each in a thread of its own.

It follows the events files that the programs write, so a service that is unavailable delays nothing and
loses nothing. It can be killed at any time: what it must remember is in the spool or in the service.
"""

import contextlib
import fcntl
import os
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from trainers.runtime import run_dir as files
from trainers.runtime.events import MetricsEvent
from trainers.runtime.redaction import redact
from workers.runs.run_events import EVENT, FileTail, parse_lines
from workers.tracking.protocol import (
    EARLIER,
    END,
    EVENTS,
    JOB,
    AttemptEnd,
    MetricPoint,
    MlflowTarget,
    TrackingClient,
    TrackingJob,
    TrackingTarget,
    WandbTarget,
    list_attempts,
    read_job,
    read_state,
)

LOCK = "exporter.lock"
POLL_SECONDS = 0.3
MAX_RETRY_SECONDS = 5.0
# One failure can be a server that is starting, or two workers that create the same experiment.
FAILURES_TO_REPORT = 2
MAX_ERROR_CHARACTERS = 500

T = TypeVar("T")
P = ParamSpec("P")


def run_exporter(spool: Path) -> None:
    """Export the jobs in the spool, until the process is killed."""
    with (spool / LOCK).open("w") as lock:
        # The exporter of a worker that crashed may live a moment longer than the worker.
        fcntl.flock(lock, fcntl.LOCK_EX)
        exports: dict[tuple[str, str], Export] = {}
        started: set[Path] = set()
        while True:
            folders = list_attempts(spool)
            for folder in [folder for folder in folders if folder not in started]:
                job = read_job(folder)
                for target in job.targets if job is not None else []:
                    key = folder.stem, target.service
                    exports[key] = Export(folder, target.service, import_client(target), exports.get(key))
                    exports[key].start()
            started = set(folders)
            # A finished export stays until its folder goes: the run's next attempt continues from it.
            exports = {key: export for key, export in exports.items() if export.folder in folders}
            time.sleep(POLL_SECONDS)


class _Superseded(Exception):
    """The folder is void: another attempt has begun, or the worker has given up."""


class Export(threading.Thread):
    """The export of one attempt to one service, after that of the attempt before it."""

    def __init__(
        self,
        folder: Path,
        service: str,
        create: Callable[[TrackingJob, int], TrackingClient],
        previous: "Export | None",
    ) -> None:
        super().__init__(name=f"{folder.name} {service}", daemon=True)
        self.folder = folder
        self.sent_step = -1
        self._service = service
        self._create = create
        self._previous = previous

    def run(self) -> None:
        if self._previous is not None:
            self._previous.join()
            self.sent_step = self._previous.sent_step
            self._previous = None
        try:
            with contextlib.suppress(_Superseded, FileNotFoundError):
                self._export()
        except Exception:
            # The disk is full, for example. The worker starts the exporter again, which loses nothing.
            traceback.print_exc()
            os._exit(1)

    def _export(self) -> None:
        job = read_job(self.folder)
        self._state = read_state(self.folder, self._service)
        if job is None or self._state.complete:
            return
        if self._state.step is not None:
            self.sent_step = max(self.sent_step, self._state.step)
        client = self._retry(self._create, job, self.sent_step)
        run_id, url = self._retry(client.start)
        self._save_state(run_id=run_id, url=url)
        try:
            self._send_file(client, FileTail(self.folder / EARLIER), has_ended=lambda: True)
            self._send_file(client, FileTail(self.folder / EVENTS), has_ended=(self.folder / END).exists)
            self._retry(client.finish, AttemptEnd.model_validate_json((self.folder / END).read_bytes()))
        except (_Superseded, FileNotFoundError):
            # Let go of the run, so that the next attempt can continue it.
            client.finish(AttemptEnd(status="queued", step=0, time=datetime.now(UTC)))
            raise
        self._save_state(complete=True, step=self.sent_step if self.sent_step >= 0 else None)

    def _send_file(self, client: TrackingClient, tail: FileTail, has_ended: Callable[[], bool]) -> None:
        while True:
            # In this order: whatever the program wrote before it ended is read after the end is seen.
            is_last = has_ended()
            text = tail.read(to_end=is_last)
            if points := parse_points(text):
                self._retry(client.log, points)
                self.sent_step = max(self.sent_step, points[-1].step)
                if not client.is_buffered:
                    self._save_state(step=self.sent_step)
            elif not text and is_last:
                return
            elif not text:
                self._check_folder()
                time.sleep(POLL_SECONDS)

    def _retry(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Call until it succeeds; raises _Superseded when the folder is void."""
        n_failures = 0
        while True:
            self._check_folder()
            try:
                result = call(*args, **options)
            except Exception as error:
                n_failures += 1
                if n_failures == FAILURES_TO_REPORT:
                    traceback.print_exc()
                    message = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
                    self._save_state(error=redact(message).rstrip("."))
                time.sleep(min(MAX_RETRY_SECONDS, n_failures))
            else:
                if self._state.error is not None:
                    self._save_state(error=None)
                return result

    def _save_state(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)
        files.write_json(self.folder / f"{self._service}.json", self._state.model_dump())

    def _check_folder(self) -> None:
        if not (self.folder / JOB).exists():
            raise _Superseded


def import_client(target: TrackingTarget) -> Callable[[TrackingJob, int], TrackingClient]:
    """Import the client of a target, and return its constructor.

    Call it in one thread only: packages with circular imports fail when two threads import them at once.
    """
    if isinstance(target, MlflowTarget):
        from workers.tracking.mlflow import MlflowTrackingClient

        return lambda job, sent_step: MlflowTrackingClient(target, job)
    if isinstance(target, WandbTarget):
        from workers.tracking.wandb import WandbTrackingClient

        return lambda job, sent_step: WandbTrackingClient(target, job, sent_step)
    from workers.tracking.tensorboard import TensorboardTrackingClient

    return lambda job, sent_step: TensorboardTrackingClient(target, job, sent_step)


def parse_points(text: str) -> list[MetricPoint]:
    """Return the metrics in lines of events, without values that were not finite."""
    events = [event for event in parse_lines(EVENT, text) if isinstance(event, MetricsEvent)]
    finite = [{name: value for name, value in event.values.items() if value is not None} for event in events]
    return [
        MetricPoint(event.step, event.time, values)
        for event, values in zip(events, finite, strict=True)
        if values
    ]
