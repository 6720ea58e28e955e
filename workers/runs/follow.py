"""Follows a run directory while its program works, and returns what is new in it."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.runs.attempt_outcome import NewEvent
from app.runs.curves.main_metric import extend_summary
from app.tables import EventType
from trainers.runtime import run_dir as files
from trainers.runtime.events import MetricsEvent, ProgramEvent, ResumedEvent, WarningEvent
from workers.runs.run_events import CHECKPOINT, EVENT, SAMPLE, FileTail, SampledCompletion, parse_lines

# One event per second contains the newest log lines. The whole log is published when the program ends.
MAX_LOG_LINES = 200
MAX_LINE_CHARACTERS = 1000
# Samples are shown while the run trains; the whole file is published when the program ends.
SECONDS_BETWEEN_SAMPLES = 30.0
MAX_SAMPLES = 8
MAX_SAMPLE_CHARACTERS = 2000


@dataclass
class RunDirChanges:
    """The changes of a run directory since the last poll: events, columns of the run, and checkpoints."""

    events: list[NewEvent] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[files.CheckpointRecord] = field(default_factory=list)

    def add(self, later: "RunDirChanges") -> None:
        """Add later events and values to these."""
        self.events += later.events
        self.values |= later.values


class RunDirFollower:
    """The position up to which one run directory has been read.

    It must be created before the program starts, so that the checkpoint to resume from is not new.
    """

    def __init__(self, run_dir: Path, metrics: dict[str, Any] | None = None) -> None:
        """Begin with the summary of the `metrics` of earlier attempts."""
        self._run_dir = run_dir.resolve()
        self._log = FileTail(run_dir / files.LOG)
        self._events = FileTail(run_dir / files.EVENTS)
        self._checkpoints = FileTail(run_dir / files.CHECKPOINT_LINES, from_end=True)
        self._samples = FileTail(run_dir / files.SAMPLES)
        self._sampled_at = -SECONDS_BETWEEN_SAMPLES
        self._last_saved_step = -1
        self._first_event: tuple[float, int] | None = None
        self._error_seen_at: float | None = None
        self._metrics = dict(metrics or {})
        self.save_seconds = 0.0
        """The longest time for which this attempt waited for a checkpoint."""

    def poll(self, *, to_end: bool = False) -> RunDirChanges:
        """Return the changes since the last poll; pass `to_end` when the program has ended."""
        changes = RunDirChanges()
        for event in parse_lines(EVENT, self._events.read(to_end=to_end)):
            self._add_event(changes, event)
        if log := self._log.read(to_end=to_end, newest=True).splitlines():
            changes.events.append(NewEvent(EventType.log, {"lines": _shorten(log)}))
        self._add_samples(changes, to_end=to_end)
        for checkpoint in parse_lines(CHECKPOINT, self._checkpoints.read(to_end=to_end)):
            self._add_checkpoint(changes, checkpoint)
        return changes

    @property
    def seconds_since_error(self) -> float:
        """The time since the program, or one of its ranks, wrote an error; 0 without one."""
        if self._error_seen_at is None and files.list_errors(self._run_dir):
            self._error_seen_at = time.monotonic()
        return 0.0 if self._error_seen_at is None else time.monotonic() - self._error_seen_at

    def _add_event(self, changes: RunDirChanges, event: ProgramEvent) -> None:
        if isinstance(event, WarningEvent):
            changes.events.append(NewEvent.warning(event.code, event.message))
            return
        if isinstance(event, ResumedEvent):
            data = {"exactness": event.exactness, "reasons": event.reasons}
            changes.events.append(NewEvent(EventType.resumed, data, event.step))
            return
        steps = {"step": event.step, "total_steps": event.total_steps}
        changes.values |= {**steps, **self._measure_pace(event.step, event.time.timestamp())}
        if isinstance(event, MetricsEvent):
            changes.events.append(NewEvent(EventType.metrics, event.values, event.step))
            self._metrics = extend_summary(self._metrics, event.values, event.step)
            changes.values["metrics"] = self._metrics
            return
        # Of several progress events in one poll, only the last is worth a row.
        changes.events = [earlier for earlier in changes.events if earlier.type is not EventType.progress]
        changes.events.append(NewEvent(EventType.progress, steps, event.step))

    def _add_samples(self, changes: RunDirChanges, *, to_end: bool) -> None:
        """Add the newest completions of the model in training, at most twice a minute."""
        now = time.monotonic()
        if now - self._sampled_at < SECONDS_BETWEEN_SAMPLES and not to_end:
            return
        samples = parse_lines(SAMPLE, self._samples.read(to_end=to_end, newest=True))
        if not samples:
            return
        self._sampled_at, step = now, samples[-1].step
        newest = [_shorten_sample(sample) for sample in samples if sample.step == step][:MAX_SAMPLES]
        changes.events.append(NewEvent(EventType.samples, {"samples": newest}, step))

    def _add_checkpoint(self, changes: RunDirChanges, checkpoint: files.CheckpointRecord) -> None:
        """Add a checkpoint that is inside the run directory and newer than the last one."""
        checkpoints = self._run_dir / files.CHECKPOINTS
        is_inside = (self._run_dir / checkpoint.path).resolve().is_relative_to(checkpoints)
        if is_inside and checkpoint.step > self._last_saved_step:
            self._last_saved_step = checkpoint.step
            self.save_seconds = max(self.save_seconds, checkpoint.seconds)
            changes.checkpoints.append(checkpoint)

    def _measure_pace(self, step: int, seconds: float) -> dict[str, float]:
        """Return the seconds per step since this attempt's first event, for the estimate of the time left."""
        if self._first_event is None:
            self._first_event = (seconds, step)
        first_seconds, first_step = self._first_event
        if step <= first_step:
            return {}
        return {"seconds_per_step": (seconds - first_seconds) / (step - first_step)}


def _shorten_sample(sample: SampledCompletion) -> dict[str, Any]:
    """Return a sample with the ends of its texts cut; of a conversation, the last message is kept."""
    prompt = sample.prompt if isinstance(sample.prompt, str) else _last_content(sample.prompt)
    values = sample.model_dump(exclude={"step", "prompt"}, exclude_none=True)
    texts = {"prompt": prompt, "completion": sample.completion, "reference": sample.reference}
    shortened = {name: text[:MAX_SAMPLE_CHARACTERS] for name, text in texts.items() if text is not None}
    return values | {name: text.replace("\0", "\ufffd") for name, text in shortened.items()}


def _last_content(messages: list[dict[str, Any]]) -> str:
    content = messages[-1].get("content") if messages else ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _shorten(lines: list[str]) -> list[str]:
    kept = [line[:MAX_LINE_CHARACTERS] for line in lines[-MAX_LOG_LINES:]]
    n_omitted = len(lines) - len(kept)
    return [f"… {n_omitted} earlier lines are in the whole log", *kept] if n_omitted else kept
