"""The tracking of one attempt: a sender for each service that is on.

Nothing here waits for a service while the program works. When it has ended, what is left gets a bounded
time: first the points, while the lease is still held, then the result and the status.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from app.runs import lifecycle
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Job, Run, Worker
from trainers.runtime import run_dir as files
from workers.hosts.lease import Lease
from workers.runs.follow import RunDirChanges
from workers.tracking.exporter import Sender
from workers.tracking.protocol import Ending, Order, Tracked, TrackingTarget
from workers.tracking.services import list_targets

FOLDER = ".tracking"
LOOK_SECONDS = 0.1

logger = logging.getLogger(__name__)


class AttemptTracking:
    """All senders of one attempt; made before the program starts, so that it knows where that goes on."""

    def __init__(self, run: Run, settings: Settings, run_dir: Path) -> None:
        self._run = run
        self._settings = settings
        self._run_dir = run_dir
        self._links = {link["service"]: link for link in run.tracking}
        saved = files.checkpoints(run_dir)
        self._first_step = saved[-1].step + 1 if saved else 0
        self._senders: list[Sender] = []

    def start(self, lease: Lease) -> None:
        """Start the senders; what keeps them from starting does not keep the run from going on."""
        try:
            on = list_targets(self._settings)
            about = self._about() if on else {}
            for target in on:
                sender = Sender(self._order(target, about), self._run_dir / FOLDER / target.service)
                sender.start(lease)
                self._senders.append(sender)
        except (OSError, OperationalError) as error:
            logger.warning("this attempt is not tracked: %s", error, extra={"run_id": self._run.id})

    def look(self) -> RunDirChanges:
        """What the senders have told since the last look."""
        news = RunDirChanges([fact for sender in self._senders for fact in sender.look()])
        links = {link["service"]: link for sender in self._senders if (link := sender.link) is not None}
        if not links.items() <= self._links.items():
            self._links |= links
            news.values["tracking"] = [self._links[service] for service in sorted(self._links)]
        return news

    def drain(self, lost: threading.Event) -> RunDirChanges:
        """The program has ended: wait a while until all that it told has arrived."""
        with contextlib.suppress(OSError):
            for sender in self._senders:
                sender.program_ended()
        return self._wait(lambda sender: sender.has_sent_all or sender.is_stuck, lost)

    def finish(self, ended: Run) -> None:
        """Tell the result and the status, wait a while, and say what has not arrived."""
        if not self._senders:
            return
        ending = Ending.model_validate(ended.model_dump(include={"status", "step", "error", "result"}))
        with contextlib.suppress(OSError):
            for sender in self._senders:
                sender.attempt_ended(ending, 2 * self._settings.tracking_flush_seconds)
        news = self._wait(lambda sender: sender.is_stuck, threading.Event())
        facts = [*news.facts, *(fact for sender in self._senders for fact in sender.end())]
        try:
            with transaction() as session:
                lifecycle.append_late_events(session, ended.id, self._run.attempt, facts, news.values)
        except OperationalError as error:
            logger.warning("cannot tell of tracking: %s", error.orig, extra={"run_id": ended.id})

    def kill(self) -> None:
        """Let nothing more be sent."""
        for sender in self._senders:
            sender.kill()

    def _about(self) -> dict[str, Any]:
        run = self._run
        with read_session() as session:
            job = session.get_one(Job, run.job_id)
            worker = session.get_one(Worker, run.worker_id)
        return {
            "run_id": run.id,
            "name": run.name,
            "stage": run.stage.value,
            "job_id": job.id,
            "job_name": job.name,
            "labels": job.labels,
            "worker": worker.name,
            "attempt": run.attempt,
            "config": run.config,
            "first_step": self._first_step,
        }

    def _order(self, target: TrackingTarget, about: dict[str, Any]) -> Order:
        sent_step = self._links.get(target.service, {}).get("step")
        tracked = Tracked(**about, sent_step=-1 if sent_step is None else sent_step)
        return Order(target=target, tracked=tracked, metrics=self._run_dir / files.EVENTS)

    def _wait(self, suffices: Callable[[Sender], bool], lost: threading.Event) -> RunDirChanges:
        """Look until it suffices for each sender that still runs, or the time is up."""
        deadline = time.monotonic() + self._settings.tracking_flush_seconds
        news = self.look()
        while not all(suffices(sender) or sender.has_ended for sender in self._senders):
            if lost.wait(LOOK_SECONDS) or time.monotonic() > deadline:
                break
            news.add(self.look())
        news.add(self.look())
        return news
