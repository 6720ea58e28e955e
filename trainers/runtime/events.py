"""Events of a running program, appended to `metrics.jsonl` as they happen, one JSON object a line."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainers.runtime.run_dir import has_partial_last_line, utc_now


class EventWriter:
    """Appends events to a file and flushes each; without a path (ranks other than 0) it drops them."""

    def __init__(self, path: Path | None, progress_seconds: float = 1.0) -> None:
        torn = path is not None and has_partial_last_line(path)
        self._file = path.open("a", encoding="utf-8") if path is not None else None
        self._progress_seconds = progress_seconds
        self._last_progress = -math.inf
        if self._file is not None and torn:
            self._file.write("\n")

    def metrics(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        """Numbers of one step; a value that is not finite is written as null, which JSON can hold."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append("metrics", step=step, total_steps=total_steps, values=finite)

    def progress(self, step: int, total_steps: int) -> None:
        """How far the program is: the first and the last step, and between them about one a second."""
        now = time.monotonic()
        if now - self._last_progress >= self._progress_seconds or step >= total_steps:
            self._last_progress = now
            self._append("progress", step=step, total_steps=total_steps)

    def warning(self, code: str, message: str) -> None:
        """Something works but not as a person may expect; the message says what to do."""
        self._append("warning", code=code, message=message)

    def resumed(self, step: int, exactness: str, reasons: list[str]) -> None:
        """The run goes on after this step, exactly as it would have gone or not, and why not."""
        self._append("resumed", step=step, exactness=exactness, reasons=reasons)

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

    def _append(self, kind: str, **fields: Any) -> None:
        if self._file is not None:
            event = {"type": kind, "time": utc_now(), **fields}
            self._file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
