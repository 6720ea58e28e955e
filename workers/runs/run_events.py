"""Lines that a program appends to the files of its run directory.

The program is not trusted: every line is validated, and invalid lines are skipped. Secrets of the worker's
environment, which a library may print, are removed.
"""

import logging
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from trainers.runtime.events import ProgramEvent
from trainers.runtime.redaction import redact
from trainers.runtime.run_dir import CheckpointRecord

MAX_READ_BYTES = 4 << 20

logger = logging.getLogger(__name__)

T = TypeVar("T")

EVENT: TypeAdapter[ProgramEvent] = TypeAdapter(ProgramEvent)
CHECKPOINT = TypeAdapter(CheckpointRecord)


# PostgreSQL's JSON cannot store NUL.
RewardName = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]*$")]


class SampledCompletion(BaseModel):
    """A line of `samples.jsonl`: a completion of the model in training, with the rewards that it got."""

    step: int = Field(ge=0, lt=2**31)
    prompt: str | list[dict[str, Any]]
    completion: str
    reference: str | None = None
    rewards: dict[RewardName, FiniteFloat | None] = Field({}, max_length=100)
    total: FiniteFloat | None = None


SAMPLE = TypeAdapter(SampledCompletion)


class FileTail:
    """Reads the whole lines that were appended to a file since the last read."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read(self, *, to_end: bool = False, newest: bool = False) -> str:
        """Return the new lines; with `to_end` also a last line that does not end with a newline.

        At most `MAX_READ_BYTES` are read. The rest follows with the next read; with `newest`, the end of the
        file is read and what comes before it is skipped.
        """
        if not self._path.is_file():
            return ""
        if newest:
            self._offset = max(self._offset, self._path.stat().st_size - MAX_READ_BYTES)
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(MAX_READ_BYTES)
        end = content.rfind(b"\n") + 1
        if len(content) == MAX_READ_BYTES:
            end = end or len(content)
        elif to_end:
            end = len(content)
        self._offset += end
        # PostgreSQL's JSON cannot store NUL.
        return redact(content[:end].decode("utf-8", "replace").replace("\0", "\ufffd"))


def parse_lines(kind: TypeAdapter[T], text: str) -> list[T]:
    """Return the lines that are valid. A program that was killed leaves its last line incomplete."""
    values, n_invalid = [], 0
    # JSON strings may contain characters at which splitlines() would split, such as U+2028.
    for line in text.split("\n"):
        try:
            if line.strip():
                values.append(kind.validate_json(line))
        except ValidationError:
            n_invalid += 1
    if n_invalid:
        logger.warning("%d line(s) of a program were skipped: they are not valid", n_invalid)
    return values
