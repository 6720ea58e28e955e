"""A sender as its worker sees it: a guarded program, what it is told, and what it tells."""

import logging
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from app.runs.lifecycle import NewEvent
from app.tables import EventType, TrackingService
from trainers.runtime import run_dir as files
from workers.hosts import guarded_process
from workers.hosts.guarded_process import GuardedProcess
from workers.hosts.lease import Lease
from workers.runs.run_events import FileTail, parse_lines
from workers.tracking.protocol import ENDING, LOG, ORDER, PROGRAM_ENDED, TOLD, Ending, Link, Order, Told
from workers.tracking.services import SETTINGS, environment

SERVICE_TITLES = {"mlflow": "MLflow", "wandb": "W&B", "tensorboard": "TensorBoard"}

logger = logging.getLogger(__name__)

_told = TypeAdapter(Told)


class Sender:
    """What is known of one sender between one look and the next."""

    def __init__(self, order: Order, folder: Path) -> None:
        self.service = TrackingService(order.target.service)
        self.is_stuck = False
        self.has_sent_all = False
        self._order = order
        self._folder = folder
        self._title = SERVICE_TITLES[self.service]
        self._child: GuardedProcess | None = None
        self._lines = FileTail(folder / TOLD)
        self._link: Link | None = None
        self._step = order.tracked.sent_step

    def start(self, lease: Lease) -> None:
        """Start the program; renewals of the lease let it go on."""
        self._folder.mkdir(parents=True)
        (self._folder / ORDER).write_text(self._order.model_dump_json(), encoding="utf-8")
        self._child = guarded_process.start_guarded_process(
            [sys.executable, "-m", "workers.tracking", str(self._folder)],
            log=self._folder / LOG,
            environment=environment(self._order.target),
            seconds=lease.seconds_left,
        )
        lease.bind(self._child)

    def look(self) -> list[NewEvent]:
        """Warnings that are new since the last look."""
        facts = []
        for told in parse_lines(_told, self._lines.read()):
            self._heed(told)
            if told.trouble is not None:
                facts.append(self._trouble(told.trouble))
        return facts

    @property
    def link(self) -> dict[str, Any] | None:
        """Where the run stands in the service, once that is known."""
        if self._link is None:
            return None
        step = self._step if self._step >= 0 else None
        return {"service": self.service.value, **self._link.model_dump(), "step": step}

    @property
    def has_ended(self) -> bool:
        """Whether its program runs no more."""
        return self._child is None or self._child.wait(0) is not None

    def program_ended(self) -> None:
        """Tell it that no points will be added."""
        (self._folder / PROGRAM_ENDED).touch()

    def attempt_ended(self, ending: Ending, seconds: float) -> None:
        """Tell it the result and the status, after which it ends by itself: no lease lets it live now."""
        if self._child is not None:
            self._child.extend(seconds)
        files.write_json(self._folder / ENDING, ending.model_dump(mode="json"))

    def end(self) -> list[NewEvent]:
        """Kill what still runs; a warning if not all has arrived."""
        complete = self._child is not None and self._child.wait(0) == 0
        self.kill()
        return [] if complete else [self._incomplete()]

    def kill(self) -> None:
        """Let nothing more be sent."""
        if self._child is not None:
            self._child.kill()

    def _heed(self, told: Told) -> None:
        self.is_stuck = told.stuck
        self.has_sent_all = self.has_sent_all or told.sent_all
        self._link = told.link or self._link
        self._step = max(self._step, told.step if told.step is not None else -1)

    def _trouble(self, trouble: str) -> NewEvent:
        message = (
            f"{self._title} does not take what is sent to it: {trouble} The run goes on, and its metrics "
            "are kept here. Until it ends, sending is tried again."
        )
        hint = (
            f"See whether {self._title} is up, {SETTINGS[self.service]} is right, and the worker has its key."
        )
        return self._warning("tracking_unreachable", message, hint)

    def _incomplete(self) -> NewEvent:
        run_id = self._order.tracked.run_id
        arrived = f"its metrics up to step {self._step}" if self._step >= 0 else "none of its metrics"
        message = f"{self._title} has not taken all of {run_id} in time: {arrived} arrived there."
        hint = f"All of it is here: GET /api/v1/runs/{run_id}/metrics."
        logger.warning("%s the sender's log: %s", message, self._last_line(), extra={"run_id": run_id})
        return self._warning("tracking_incomplete", message, hint)

    def _warning(self, code: str, message: str, hint: str) -> NewEvent:
        data = {"code": code, "message": message, "hint": hint, "service": self.service.value}
        return NewEvent(EventType.warning, data)

    def _last_line(self) -> str:
        try:
            return (self._folder / LOG).read_text(errors="replace").rstrip().rpartition("\n")[2]
        except OSError:
            return ""
