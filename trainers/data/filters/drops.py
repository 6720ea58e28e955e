"""What filters dropped, from which lines, and why."""

from collections import Counter
from collections.abc import Callable
from enum import StrEnum

from pydantic import BaseModel, Field


class DropReason(StrEnum):
    """Why a row or a pair was dropped."""

    too_short = "too_short"
    too_long = "too_long"
    duplicate = "duplicate"
    near_duplicate = "near_duplicate"
    empty_side = "empty_side"
    wrong_language = "wrong_language"
    length_ratio = "length_ratio"
    identical_sides = "identical_sides"
    held_out = "held_out"


class Drop(BaseModel):
    """One row that was dropped."""

    line: int = Field(description="Line of the file, from 1.")
    reason: DropReason
    detail: str = Field(description="The figure or the line that decided, as a sentence.")


class DropReport(BaseModel):
    """What a chain of filters dropped."""

    dropped: int
    counts: dict[DropReason, int] = Field(description="Rows dropped, by reason.")
    first: list[Drop] = Field(description="The first drops of each reason, in the order of their lines.")
    not_remembered: int = Field(
        description="Rows that came after a duplicate filter's memory was full, and which later rows were "
        "not compared with; above 0, some duplicates may be left."
    )


class DropRecorder:
    """Gathers what the filters of one chain drop.

    `limit` drops of each reason are kept for the report; `write` is called with every single one.
    """

    def __init__(self, limit: int = 100, write: Callable[[Drop], object] | None = None) -> None:
        self.not_remembered = 0
        self._counts: Counter[DropReason] = Counter()
        self._first: list[Drop] = []
        self._limit, self._write = limit, write

    def add(self, line: int, reason: DropReason, detail: str) -> None:
        """Counts one more dropped row."""
        self._counts[reason] += 1
        drop = Drop(line=line, reason=reason, detail=detail)
        if self._counts[reason] <= self._limit:
            self._first.append(drop)
        if self._write is not None:
            self._write(drop)

    def report(self) -> DropReport:
        """What was dropped so far; final once the chain of filters has been read to its end."""
        return DropReport(
            dropped=self._counts.total(),
            counts=dict(self._counts),
            first=sorted(self._first, key=lambda drop: drop.line),
            not_remembered=self.not_remembered,
        )
