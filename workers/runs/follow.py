"""Follows a run directory while its program works, and tells what is new in it as facts for SQL."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.runs.lifecycle import NewEvent
from app.tables import EventType
from trainers.runtime import run_dir as files
from trainers.runtime.events import MetricsEvent, ProgramEvent, ResumedEvent, WarningEvent
from workers.runs.run_events import CHECKPOINT, EVENT, FileTail, parse_lines

# One event a second holds the newest log lines; a program that floods its log has the rest in the
# whole log, which is published when it ends.
MAX_LOG_LINES = 200
MAX_LINE_CHARACTERS = 1000


@dataclass
class RunDirChanges:
    """What a look into the run directory found."""

    facts: list[NewEvent] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[files.CheckpointRecord] = field(default_factory=list)

    def add(self, later: "RunDirChanges") -> None:
        """Join later facts and values to these."""
        self.facts += later.facts
        self.values |= later.values


class RunDirFollower:
    """The state of following one run directory.

    Made before the program starts: a checkpoint that was laid there to resume from is not news.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir.resolve()
        self._log = FileTail(run_dir / files.LOG)
        self._events = FileTail(run_dir / files.EVENTS)
        self._checkpoints = FileTail(run_dir / files.CHECKPOINT_LINES, from_end=True)
        self._saved_step = -1
        self._first: tuple[float, int] | None = None

    def look(self, *, to_end: bool = False) -> RunDirChanges:
        """What is new since the last look; `to_end` when the program has ended."""
        news = RunDirChanges()
        for event in parse_lines(EVENT, self._events.read(to_end=to_end)):
            self._add_event(news, event)
        if log := self._log.read(to_end=to_end, newest=True).splitlines():
            news.facts.append(NewEvent(EventType.log, {"lines": _shorten(log)}))
        for checkpoint in parse_lines(CHECKPOINT, self._checkpoints.read(to_end=to_end)):
            self._add_checkpoint(news, checkpoint)
        return news

    def _add_event(self, news: RunDirChanges, event: ProgramEvent) -> None:
        if isinstance(event, WarningEvent):
            news.facts.append(NewEvent(EventType.warning, {"code": event.code, "message": event.message}))
            return
        if isinstance(event, ResumedEvent):
            data = {"exactness": event.exactness, "reasons": event.reasons}
            news.facts.append(NewEvent(EventType.resumed, data, event.step))
            return
        steps = {"step": event.step, "total_steps": event.total_steps}
        news.values |= {**steps, **self._pace(event.step, event.time.timestamp())}
        if isinstance(event, MetricsEvent):
            news.facts.append(NewEvent(EventType.metrics, event.values, event.step))
            return
        # Of several moves of a progress bar only the last is worth a row.
        news.facts = [fact for fact in news.facts if fact.type is not EventType.progress]
        news.facts.append(NewEvent(EventType.progress, steps, event.step))

    def _add_checkpoint(self, news: RunDirChanges, checkpoint: files.CheckpointRecord) -> None:
        """Only folders of the run directory, each step once: the store keeps one of a step."""
        within = (self._run_dir / checkpoint.path).resolve().is_relative_to(self._run_dir / files.CHECKPOINTS)
        if within and checkpoint.step > self._saved_step:
            self._saved_step = checkpoint.step
            news.checkpoints.append(checkpoint)

    def _pace(self, step: int, seconds: float) -> dict[str, float]:
        """Seconds per step since this attempt's first event, from which the time left is told."""
        if self._first is None:
            self._first = (seconds, step)
        first_seconds, first_step = self._first
        if step <= first_step:
            return {}
        return {"seconds_per_step": (seconds - first_seconds) / (step - first_step)}


def _shorten(lines: list[str]) -> list[str]:
    kept = [line[:MAX_LINE_CHARACTERS] for line in lines[-MAX_LOG_LINES:]]
    left_out = len(lines) - len(kept)
    return [f"… {left_out} lines before these are in the whole log", *kept] if left_out else kept
