"""Follows a run directory while its program works, and tells what is new in it as facts for SQL.

The program is not trusted: what it writes is validated, and a line that does not hold is left out.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from app.runs.lifecycle import Fact
from app.tables import EventType
from trainers import run_dir as files
from trainers.configs.resuming import Exactness

# One event a second holds the newest log lines; a program that floods its log has the rest in the
# whole log, which is published when it ends.
MAX_LOG_LINES = 200
MAX_LINE_CHARACTERS = 1000
MAX_READ_BYTES = 4 << 20

logger = logging.getLogger(__name__)

T = TypeVar("T")

Step = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Text = Annotated[str, Field(max_length=4000, pattern=r"^[^\x00]*$")]


class _Progress(BaseModel):
    type: Literal["progress"]
    time: AwareDatetime
    step: Step
    total_steps: Step


class _Metrics(BaseModel):
    type: Literal["metrics"]
    time: AwareDatetime
    step: Step
    total_steps: Step
    values: Annotated[dict[Name, FiniteFloat | None], Field(max_length=200)]


class _Warning(BaseModel):
    type: Literal["warning"]
    code: Name
    message: Text


class _Resumed(BaseModel):
    type: Literal["resumed"]
    step: Step
    exactness: Exactness
    reasons: Annotated[list[Text], Field(max_length=20)]


class _Checkpoint(BaseModel):
    step: Step
    path: str
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    time: str


_Event = _Progress | _Metrics | _Warning | _Resumed
_event: TypeAdapter[_Event] = TypeAdapter(Annotated[_Event, Field(discriminator="type")])
_checkpoint = TypeAdapter(_Checkpoint)


class Tail:
    """Reads what was appended to a file since the last time, whole lines only."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read(self, *, to_end: bool = False, newest: bool = False) -> str:
        """New lines; with `to_end` also a last one without its newline.

        Of more than `MAX_READ_BYTES` it answers the first and goes on from there the next time, or with
        `newest` the last.
        """
        if not self._path.is_file():
            return ""
        if newest:
            self._offset = max(self._offset, self._path.stat().st_size - MAX_READ_BYTES)
        with self._path.open("rb") as file:
            file.seek(self._offset)
            read = file.read(MAX_READ_BYTES)
        whole = read.rfind(b"\n") + 1
        if len(read) == MAX_READ_BYTES:
            whole = whole or len(read)
        elif to_end:
            whole = len(read)
        self._offset += whole
        # PostgreSQL's JSON holds no NUL.
        return read[:whole].decode("utf-8", "replace").replace("\0", "\ufffd")


@dataclass
class News:
    """What a look into the run directory found."""

    facts: list[Fact] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[files.Checkpoint] = field(default_factory=list)

    def add(self, later: "News") -> None:
        """Join later facts and values to these."""
        self.facts += later.facts
        self.values |= later.values


class Follower:
    """The state of following one run directory.

    Made before the program starts: a checkpoint that was laid there to resume from is not news.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir.resolve()
        self._log = Tail(run_dir / files.LOG)
        self._metrics = Tail(run_dir / files.METRICS)
        self._checkpoints = Tail(run_dir / files.CHECKPOINT_LINES, from_end=True)
        self._saved_step = -1
        self._first: tuple[float, int] | None = None

    def look(self, *, to_end: bool = False) -> News:
        """What is new since the last look; `to_end` when the program has ended."""
        news = News()
        for event in _parsed(_event, self._metrics.read(to_end=to_end)):
            self._add_event(news, event)
        if log := self._log.read(to_end=to_end, newest=True).splitlines():
            news.facts.append(Fact(EventType.log, {"lines": _shorten(log)}))
        for checkpoint in _parsed(_checkpoint, self._checkpoints.read(to_end=to_end)):
            self._add_checkpoint(news, checkpoint)
        return news

    def _add_event(self, news: News, event: _Event) -> None:
        if isinstance(event, _Warning):
            news.facts.append(Fact(EventType.warning, {"code": event.code, "message": event.message}))
            return
        if isinstance(event, _Resumed):
            data = {"exactness": event.exactness, "reasons": event.reasons}
            news.facts.append(Fact(EventType.resumed, data, event.step))
            return
        steps = {"step": event.step, "total_steps": event.total_steps}
        news.values |= {**steps, **self._pace(event.step, event.time.timestamp())}
        if isinstance(event, _Metrics):
            news.facts.append(Fact(EventType.metrics, event.values, event.step))
            return
        # Of several moves of a progress bar only the last is worth a row.
        news.facts = [fact for fact in news.facts if fact.type is not EventType.progress]
        news.facts.append(Fact(EventType.progress, steps, event.step))

    def _add_checkpoint(self, news: News, checkpoint: _Checkpoint) -> None:
        """Only folders of the run directory, each step once: the store keeps one of a step."""
        within = (self._run_dir / checkpoint.path).resolve().is_relative_to(self._run_dir / files.CHECKPOINTS)
        if within and checkpoint.step > self._saved_step:
            self._saved_step = checkpoint.step
            news.checkpoints.append(files.Checkpoint(**checkpoint.model_dump()))

    def _pace(self, step: int, seconds: float) -> dict[str, float]:
        """Seconds per step since this attempt's first event, from which the time left is told."""
        if self._first is None:
            self._first = (seconds, step)
        first_seconds, first_step = self._first
        if step <= first_step:
            return {}
        return {"seconds_per_step": (seconds - first_seconds) / (step - first_step)}


def _parsed(kind: TypeAdapter[T], text: str) -> list[T]:
    """The lines that hold; a program that was killed leaves the last one torn."""
    values, refused = [], 0
    # JSON strings may hold characters at which splitlines() would split.
    for line in text.split("\n"):
        try:
            if line.strip():
                values.append(kind.validate_json(line))
        except ValidationError:
            refused += 1
    if refused:
        logger.warning("%d lines of a program were left out: they are no events", refused)
    return values


def _shorten(lines: list[str]) -> list[str]:
    kept = [line[:MAX_LINE_CHARACTERS] for line in lines[-MAX_LOG_LINES:]]
    left_out = len(lines) - len(kept)
    return [f"… {left_out} lines before these are in the whole log", *kept] if left_out else kept
