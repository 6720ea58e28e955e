"""The journal of recorded responses: what was asked, and each response as soon as it exists.

A line `asked` is written before a request, `lost` when its connection breaks off, and the response after it,
with an fsync. After a kill, a row with
a response is never asked again; one that was asked without a response is asked again, and counted.
"""

import json
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid


class RecordJournal:
    """The file, and what it contains; threads share it."""

    def __init__(self, path: Path, identity: str) -> None:
        """Open the file and read it; raises ConfigInvalid if it is of another model or of other rows."""
        if files.has_partial_last_line(path):
            content = path.read_bytes()
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        lines = files.read_lines(path)
        if lines and lines[0] != {"recording": identity}:
            raise ConfigInvalid(
                f"{path} contains responses of another model, to other rows or with other sampling.",
                "Name another run directory, or remove the file to record all responses again.",
            )
        self.answers: dict[int, dict[str, Any]] = {}
        self._asked: Counter[int] = Counter()
        self._lost: Counter[int] = Counter()
        for line in lines[1:]:
            if "asked" in line:
                self._asked[line["asked"]] += 1
            elif "lost" in line:
                self._lost[line["lost"]] += 1
            else:
                self.answers[line["row"]] = line
        self._lock = threading.Lock()
        # Half a surrogate pair becomes its escape in JSON.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        if not lines:
            self._write({"recording": identity})

    @property
    def lost(self) -> Counter[int]:
        """How many responses of each row a kill or a broken connection has lost."""
        return self._asked + self._lost - Counter(list(self.answers))

    @property
    def n_asked_again(self) -> int:
        """The requests that a kill of the program has made necessary."""
        return sum(self._asked.values()) - len(self._asked)

    def ask(self, row: int) -> None:
        """Record that a row is asked now; survives a kill of this process."""
        with self._lock:
            self._asked[row] += 1
            self._write({"asked": row})

    def lose(self, row: int) -> None:
        """Record that the connection broke off before the response to a row; survives a kill."""
        with self._lock:
            self._lost[row] += 1
            self._write({"lost": row})

    def add(self, row: int, answer: dict[str, Any]) -> None:
        """Record the response to a row; survives a loss of power."""
        line = {"row": row, **answer}
        with self._lock:
            self._write(line)
            os.fsync(self._file.fileno())
            self.answers[row] = line

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
