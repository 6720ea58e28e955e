"""The events that a program appends to `events.jsonl`: their schema and their writer.

The file has one JSON object per line. Programs write it with `EventWriter`; workers validate each line with
the same models, because a program that runs a stranger's job is not trusted.
"""

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, FiniteFloat

from trainers.configs.resume_guarantee import Exactness
from trainers.runtime.run_dir import has_partial_last_line

MAX_TEXT_CHARACTERS = 4000
MAX_METRICS = 200
MAX_REASONS = 20


def _clean_text(value: object) -> object:
    """Shorten a text and replace NUL, which PostgreSQL stores neither as text nor as JSON."""
    return value.replace("\0", "\ufffd")[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else value


Step = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Text = Annotated[str, BeforeValidator(_clean_text)]


class _Event(BaseModel):
    time: AwareDatetime = Field(description="When the event was written, in UTC.")


class ProgressEvent(_Event):
    """The number of steps that are done."""

    type: Literal["progress"] = Field("progress", description="Kind of the event.")
    step: Step = Field(description="Steps that are done: optimizer steps, or rows of a dataset.")
    total_steps: Step = Field(description="Steps of the whole run.")


class MetricsEvent(_Event):
    """Named values of one step."""

    type: Literal["metrics"] = Field("metrics", description="Kind of the event.")
    step: Step = Field(description="Optimizer step after which the values were measured.")
    total_steps: Step = Field(description="Steps of the whole run.")
    values: Annotated[dict[Name, FiniteFloat | None], Field(max_length=MAX_METRICS)] = Field(
        description=(
            "Values by name; null if not finite, because JSON has no NaN. Training stages write `loss`, "
            "`grad_norm`, `learning_rate`, `epoch`, `tokens` (in total), `validation_loss`, `rewards/…`, "
            "on a GPU `peak_gpu_bytes` (of the rank that held most), and whatever else TRL logs."
        )
    )


class WarningEvent(_Event):
    """A setting or a row that works, but perhaps not as intended."""

    type: Literal["warning"] = Field("warning", description="Kind of the event.")
    code: Name = Field(description="Kind of the warning, such as a code of preflight's findings.")
    message: Text = Field(description="What is unusual, and the fix.")


class ResumedEvent(_Event):
    """The continuation of a stopped run from a checkpoint, with its guarantee."""

    type: Literal["resumed"] = Field("resumed", description="Kind of the event.")
    step: Step = Field(description="Step of the checkpoint.")
    exactness: Exactness = Field(
        description="`exact` if the run repeats the batches, losses and weights of an uninterrupted one."
    )
    reasons: Annotated[list[Text], Field(max_length=MAX_REASONS)] = Field(
        description="Why the resumption is only `approximate`; empty if `exact`."
    )


ProgramEvent = Annotated[
    ProgressEvent | MetricsEvent | WarningEvent | ResumedEvent, Field(discriminator="type")
]


class EventWriter:
    """Appends events to a file and flushes each; without a path (ranks other than 0) it writes nothing."""

    def __init__(self, path: Path | None, progress_seconds: float = 1.0) -> None:
        has_partial_line = path is not None and has_partial_last_line(path)
        self._file = path.open("a", encoding="utf-8") if path is not None else None
        self._progress_seconds = progress_seconds
        self._last_progress = -math.inf
        if self._file is not None and has_partial_line:
            self._file.write("\n")

    def write_metrics(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        """Write the values of one step; those that are not finite become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append(MetricsEvent(time=_now(), step=step, total_steps=total_steps, values=finite))

    def write_progress(self, step: int, total_steps: int) -> None:
        """Write the step, at most once per `progress_seconds` except for the first and the last."""
        now = time.monotonic()
        if now - self._last_progress >= self._progress_seconds or step >= total_steps:
            self._last_progress = now
            self._append(ProgressEvent(time=_now(), step=step, total_steps=total_steps))

    def write_warning(self, code: str, message: str) -> None:
        """Write a warning; the message names the fix."""
        self._append(WarningEvent(time=_now(), code=code, message=message))

    def write_resumed(self, step: int, exactness: Exactness, reasons: list[str]) -> None:
        """Write that the run continues after `step`, and whether it does so exactly."""
        self._append(ResumedEvent(time=_now(), step=step, exactness=exactness, reasons=reasons))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, event: BaseModel) -> None:
        if self._file is not None:
            self._file.write(event.model_dump_json() + "\n")
            self._file.flush()


def _now() -> datetime:
    return datetime.now(UTC)
