"""Lines that a program appends to the files of its run directory, read as far as they hold.

The program is not trusted: what it writes is validated, and a line that does not hold is left out.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from trainers.configs.resume_guarantee import Exactness

MAX_READ_BYTES = 4 << 20

logger = logging.getLogger(__name__)

T = TypeVar("T")

Step = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Text = Annotated[str, Field(max_length=4000, pattern=r"^[^\x00]*$")]


class Progress(BaseModel):
    """How far the program is."""

    type: Literal["progress"]
    time: AwareDatetime
    step: Step
    total_steps: Step


class Metrics(BaseModel):
    """Numbers of one step; one that was not finite is None."""

    type: Literal["metrics"]
    time: AwareDatetime
    step: Step
    total_steps: Step
    values: Annotated[dict[Name, FiniteFloat | None], Field(max_length=200)]


class Warned(BaseModel):
    """Something works but not as a person may expect."""

    type: Literal["warning"]
    code: Name
    message: Text


class Resumed(BaseModel):
    """Training goes on from a checkpoint, exactly or nearly as if it had not been stopped."""

    type: Literal["resumed"]
    step: Step
    exactness: Exactness
    reasons: Annotated[list[Text], Field(max_length=20)]


class SavedCheckpoint(BaseModel):
    """A checkpoint that the program has published."""

    step: Step
    path: str
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    time: str


Event = Progress | Metrics | Warned | Resumed
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])
CHECKPOINT = TypeAdapter(SavedCheckpoint)


class FileTail:
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


def parse_lines(kind: TypeAdapter[T], text: str) -> list[T]:
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
