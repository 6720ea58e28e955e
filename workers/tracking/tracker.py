"""Tracker: a worker's side of the spool, and the owner of the exporter process.

Workers that share a data directory share its spool. The one that holds the lock runs the exporter and writes
what has arrived to SQL; when it dies, the kernel releases the lock and another worker takes over.
"""

import contextlib
import fcntl
import logging
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from app.runs import lifecycle
from app.runs.attempt_outcome import NewEvent
from app.scheduling.incidents import Incident
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Event, EventType, Job, Run, Worker
from trainers.runtime import run_dir as files
from trainers.runtime.events import MetricsEvent
from workers.hosts.guarded_process import GuardedProcess, start_guarded_process
from workers.tracking.protocol import (
    EARLIER,
    END,
    EVENTS,
    JOB,
    AttemptEnd,
    TrackingJob,
    TrackingState,
    TrackingTarget,
    list_attempts,
    read_job,
    read_state,
)
from workers.tracking.services import (
    SERVICE_TITLES,
    SETTINGS,
    exporter_environment,
    list_run_targets,
    list_targets,
)

SPOOL = "tracking"
LOCK = "worker.lock"
LOG = "exporter.log"
POLL_SECONDS = 0.5
# An exporter that crashes at once is not started again at each poll.
RESTART_SECONDS = 5.0
# What has not arrived when a worker stops is sent after its next start.
STOP_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Tracker:
    """Hands attempts to the exporter, and records what it reports."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._spool = settings.data_dir / SPOOL
        self._exporter: GuardedProcess | None = None
        self._next_start_at = 0.0
        self._incident = Incident("tracking")
        self._stopping = threading.Event()
        self._start_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> None:
        """Start the thread, if the settings name a tracking service."""
        if list_targets(self._settings):
            self._ensure_started()

    def stop(self) -> None:
        """Wait a bounded time for the ends of this worker's runs to arrive, then stop the exporter."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin_attempt(self, run: Run, run_dir: Path) -> None:
        """Add an attempt to the spool before its program starts; an error does not affect the run."""
        try:
            if targets := list_run_targets(self._settings, run):
                self._add_folder(run, run_dir, targets)
                self._ensure_started()
        except Exception as error:
            logger.warning("this attempt is not tracked: %r", error, extra={"run_id": run.id})

    def end_attempt(self, run: Run, run_dir: Path) -> None:
        """Keep the events of an attempt whose run directory is about to be removed."""
        with contextlib.suppress(OSError):
            (run_dir / files.EVENTS).replace(self._folder(run) / EVENTS)

    def discard_attempt(self, run: Run) -> None:
        """Send nothing more: the run belongs to another attempt."""
        _remove(self._folder(run))

    def poll(self) -> bool:
        """Record what has arrived; return whether an attempt has ended that has not arrived completely."""
        folders = list_attempts(self._spool)
        if folders and (self._exporter is None or self._exporter.wait(0) is not None):
            self._start_exporter()
        if self._exporter is not None:
            self._exporter.extend(self._settings.lease_seconds)
        run_ids = [folder.stem for folder in folders]
        with read_session() as session:
            runs = {run.id: run for run in session.scalars(select(Run).where(col(Run.id).in_(run_ids)))}
        incomplete = [self._poll_attempt(folder, runs.get(folder.stem)) for folder in folders]
        return any(incomplete)

    def _folder(self, run: Run) -> Path:
        return self._spool / f"{run.id}.{run.attempt}"

    def _ensure_started(self) -> None:
        with self._start_lock:
            if not self._thread.is_alive() and not self._stopping.is_set():
                self._thread.start()

    def _add_folder(self, run: Run, run_dir: Path, targets: Sequence[TrackingTarget]) -> None:
        known = {link["service"]: link for link in run.tracking}
        states = [
            TrackingState.model_validate({"service": target.service} | known.get(target.service, {}))
            for target in targets
        ]
        states = [state.model_copy(update={"complete": False, "error": None}) for state in states]
        checkpoints = files.checkpoints(run_dir)
        first_step = checkpoints[-1].step + 1 if checkpoints else 0
        sent_step = min(-1 if state.step is None else state.step for state in states)
        with transaction() as session:
            job = session.get_one(Job, run.job_id)
            worker = session.get_one(Worker, run.worker_id)
            earlier = _list_earlier_metrics(session, run.id, sent_step, first_step)
            values = {"tracking": _merge_links(run, states)}
            lifecycle.append_attempt_events(session, run.id, run.attempt, [], values)
        tracking_job = TrackingJob(
            attempt=run.attempt,
            name=run.full_name or run.name,
            tags={
                "run_id": run.id,
                "stage": run.stage.value,
                "stage_name": run.name,
                "job_id": job.id,
                "job_name": job.name,
                "worker": worker.name,
                "attempt": str(run.attempt),
            },
            labels=job.labels,
            config=run.config,
            first_step=first_step,
            targets=list(targets),
        )
        folder = self._folder(run)
        draft = folder.with_name(f".{folder.name}")
        draft.mkdir(parents=True)
        (draft / JOB).write_text(tracking_job.model_dump_json(), "utf-8")
        (draft / EARLIER).write_text("".join(f"{event.model_dump_json()}\n" for event in earlier), "utf-8")
        (draft / EVENTS).symlink_to(run_dir.resolve() / files.EVENTS)
        for state in states:
            (draft / f"{state.service}.json").write_text(state.model_dump_json(), "utf-8")
        draft.rename(folder)
        for other in self._spool.glob(f"{run.id}.*"):
            if other != folder:
                _remove(other)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow_spool()
            except Exception as error:
                self._incident.record(error)
                self._stopping.wait(RESTART_SECONDS)

    def _follow_spool(self) -> None:
        self._spool.mkdir(parents=True, exist_ok=True)
        with (self._spool / LOCK).open("w") as lock:
            while not _try_lock(lock.fileno()):
                if self._stopping.wait(POLL_SECONDS):
                    return
            while not self._stopping.wait(POLL_SECONDS):
                self._try_poll()
            deadline = time.monotonic() + STOP_SECONDS
            while self._try_poll() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            if self._exporter is not None:
                self._exporter.kill()

    def _try_poll(self) -> bool:
        try:
            is_incomplete = self.poll()
        except Exception as error:
            self._incident.record(error)
            return True
        self._incident.resolve()
        return is_incomplete

    def _start_exporter(self) -> None:
        if time.monotonic() < self._next_start_at:
            return
        self._next_start_at = time.monotonic() + RESTART_SECONDS
        log = self._spool / LOG
        log.unlink(missing_ok=True)
        self._exporter = start_guarded_process(
            [sys.executable, "-m", "workers.tracking", str(self._spool)],
            log=log,
            environment=exporter_environment(),
            seconds=self._settings.lease_seconds,
        )

    def _poll_attempt(self, folder: Path, run: Run | None) -> bool:
        """Record what has arrived from one attempt; return whether it has ended and is incomplete."""
        job = read_job(folder)
        if job is None or run is None or run.attempt != job.attempt:
            _remove(folder)
            return False
        end = folder / END
        if not run.status.held and not end.exists():
            outcome = run.model_dump(include={"status", "step", "error", "result"})
            files.write_json(end, AttemptEnd(time=datetime.now(UTC), **outcome).model_dump(mode="json"))
        states = [read_state(folder, target.service) for target in job.targets]
        known_errors = {link["service"]: link.get("error") for link in run.tracking}
        events = [
            _unreachable_warning(state)
            for state in states
            if state.error and not known_errors.get(state.service)
        ]
        missing = [state for state in states if not state.complete]
        retry_seconds = self._settings.tracking_retry_seconds
        has_expired = bool(missing) and end.exists() and time.time() - end.stat().st_mtime > retry_seconds
        if has_expired:
            events += [_incomplete_warning(run.id, state) for state in missing]
        tracking = _merge_links(run, states)
        if events or tracking != run.tracking:
            with transaction() as session:
                lifecycle.append_attempt_events(session, run.id, run.attempt, events, {"tracking": tracking})
        if has_expired and self._exporter is not None:
            # A client may be blocked in a call that never returns.
            self._exporter.kill()
        if has_expired or not missing:
            _remove(folder)
            return False
        return end.exists()


def _list_earlier_metrics(
    session: Session, run_id: str, after_step: int, before_step: int
) -> Sequence[MetricsEvent]:
    """Return metrics of earlier attempts; of a step that was executed again, only the last execution."""
    statement = select(Event).where(
        Event.run_id == run_id,
        Event.type == EventType.metrics,
        col(Event.step) > after_step,
        col(Event.step) < before_step,
    )
    events = session.scalars(statement.order_by(col(Event.seq))).all()
    last_attempts = {event.step: event.attempt for event in events}
    return [
        MetricsEvent(time=event.created_at, step=event.step or 0, total_steps=before_step, values=event.data)
        for event in events
        if event.attempt == last_attempts[event.step]
    ]


def _merge_links(run: Run, states: Sequence[TrackingState]) -> list[dict[str, Any]]:
    """Return `run.tracking` with these states; another worker may export to other services."""
    links = {link["service"]: link for link in run.tracking}
    links |= {state.service: state.model_dump() for state in states}
    return [links[service] for service in sorted(links)]


def _unreachable_warning(state: TrackingState) -> NewEvent:
    title = SERVICE_TITLES[state.service]
    message = (
        f"{title} does not accept this run's metrics: {state.error}. The run continues, its metrics are kept "
        "here, and sending is retried."
    )
    hint = (
        f"Check that {title} is up, that {SETTINGS[state.service]} is right, and that the worker has its key."
    )
    return NewEvent.warning("tracking_unreachable", message, hint=hint, service=state.service)


def _incomplete_warning(run_id: str, state: TrackingState) -> NewEvent:
    arrived = "none of its metrics has" if state.step is None else f"its metrics up to step {state.step} have"
    message = f"{SERVICE_TITLES[state.service]} has not received all of {run_id}: {arrived} arrived there."
    hint = f"All metrics are available here: GET /api/v1/runs/{run_id}/metrics."
    logger.warning(message, extra={"run_id": run_id})
    return NewEvent.warning("tracking_incomplete", message, hint=hint, service=state.service)


def _remove(folder: Path) -> None:
    # The exporter checks this file before it sends; the rest may fail while it writes a state.
    (folder / JOB).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
