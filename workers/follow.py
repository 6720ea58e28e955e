"""Follows a run directory while its program works, and tells what is new in it as facts for SQL."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from app.runs.lifecycle import Fact
from app.tables import EventType
from trainers import run_dir as files

# One event a second holds the new log lines; a program that floods its log has the rest in the
# whole log, which is published when it ends.
MAX_LOG_LINES = 200
MAX_LINE_CHARACTERS = 4000
MAX_READ_BYTES = 4 << 20


class Tail:
    """Reads what was appended to a file since the last time, whole lines only."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def lines(self, *, to_end: bool = False) -> list[str]:
        """New lines; with `to_end` also a last one without its newline."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            read = file.read(MAX_READ_BYTES)
        whole = len(read) if to_end or len(read) == MAX_READ_BYTES else read.rfind(b"\n") + 1
        self._offset += whole
        # PostgreSQL's JSON holds no NUL.
        return read[:whole].decode("utf-8", "replace").replace("\0", "�").splitlines()


@dataclass
class News:
    """What a look into the run directory found."""

    facts: list[Fact] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[files.Checkpoint] = field(default_factory=list)

    def add(self, later: "News") -> None:
        """Join later news to these."""
        self.facts += later.facts
        self.values |= later.values
        self.checkpoints += later.checkpoints


class Follower:
    """The state of following one run directory.

    Made before the program starts: a checkpoint that was laid there to resume from is not news.
    """

    def __init__(self, run_dir: Path) -> None:
        self._log = Tail(run_dir / files.LOG)
        self._metrics = Tail(run_dir / files.METRICS)
        self._checkpoints = Tail(run_dir / files.CHECKPOINT_LINES, from_end=True)
        self._first: tuple[float, int] | None = None

    def look(self, *, to_end: bool = False) -> News:
        """What is new since the last look; `to_end` when the program has ended."""
        news = News()
        for line in self._metrics.lines(to_end=to_end):
            self._add_event(news, line)
        log = self._log.lines(to_end=to_end)
        if log:
            news.facts.append(Fact(EventType.log, {"lines": _shorten(log)}))
        for line in self._checkpoints.lines(to_end=to_end):
            value = json.loads(line)
            news.checkpoints.append(
                files.Checkpoint(value["step"], value["path"], value["size_bytes"], value["time"])
            )
        return news

    def _add_event(self, news: News, line: str) -> None:
        event = json.loads(line, parse_constant=lambda _: None)
        kind = EventType(event["type"])
        if kind is EventType.warning:
            news.facts.append(Fact(kind, {"code": event["code"], "message": event["message"]}))
            return
        step, total_steps = event["step"], event["total_steps"]
        news.values |= {"step": step, "total_steps": total_steps, **self._pace(step, event["time"])}
        if kind is EventType.metrics:
            news.facts.append(Fact(kind, event["values"], step))
            return
        # Of several moves of a progress bar only the last is worth a row.
        news.facts = [fact for fact in news.facts if fact.type is not EventType.progress]
        news.facts.append(Fact(kind, {"step": step, "total_steps": total_steps}, step))

    def _pace(self, step: int, time: str) -> dict[str, float]:
        """Seconds per step since this attempt's first event, from which the time left is told."""
        seconds = _seconds(time)
        if self._first is None:
            self._first = (seconds, step)
        first_seconds, first_step = self._first
        if step <= first_step:
            return {}
        return {"seconds_per_step": (seconds - first_seconds) / (step - first_step)}


def _shorten(lines: list[str]) -> list[str]:
    kept = [line[:MAX_LINE_CHARACTERS] for line in lines[:MAX_LOG_LINES]]
    left_out = len(lines) - len(kept)
    return [*kept, f"… {left_out} more lines are in the whole log"] if left_out else kept


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
