"""Record of the rows that filters drop, with line and reason."""

from collections import Counter
from collections.abc import Callable
from enum import StrEnum

from pydantic import BaseModel, Field


class DropReason(StrEnum):
    """Reason for which a row or pair was dropped."""

    too_short = "too_short"
    too_long = "too_long"
    duplicate = "duplicate"
    near_duplicate = "near_duplicate"
    empty_side = "empty_side"
    wrong_language = "wrong_language"
    broken_text = "broken_text"
    misaligned = "misaligned"
    length_ratio = "length_ratio"
    identical_sides = "identical_sides"
    held_out = "held_out"


class Drop(BaseModel):
    """A dropped row."""

    line: int = Field(description="Line of the file, from 1.")
    reason: DropReason = Field(description="Reason for which the row was dropped.")
    detail: str = Field(description="The value or line that decided, as a sentence.")


class DropReport(BaseModel):
    """Rows that a chain of filters dropped."""

    dropped: int = Field(description="Number of rows dropped.")
    counts: dict[DropReason, int] = Field(description="Number of rows dropped, by reason.")
    first: list[Drop] = Field(
        description="The first dropped rows for each reason, in the order of their lines."
    )
    not_remembered: int = Field(
        description="Rows after a duplicate filter's memory was full, with which later rows were not "
        "compared; above 0, some duplicates may remain."
    )


class DropRecorder:
    """Recorder of the rows that a chain of filters drops.

    The report contains the first `limit` rows for each reason; `write` is called for every row.
    """

    def __init__(self, limit: int = 100, write: Callable[[Drop], object] | None = None) -> None:
        self.not_remembered = 0
        self._counts: Counter[DropReason] = Counter()
        self._first: list[Drop] = []
        self._limit, self._write = limit, write

    def add(self, line: int, reason: DropReason, detail: str) -> None:
        """Record a dropped row."""
        self._counts[reason] += 1
        drop = Drop(line=line, reason=reason, detail=detail)
        if self._counts[reason] <= self._limit:
            self._first.append(drop)
        if self._write is not None:
            self._write(drop)

    def report(self) -> DropReport:
        """Return the rows dropped so far; complete when the chain of filters has been consumed."""
        return DropReport(
            dropped=self._counts.total(),
            counts=dict(self._counts),
            first=sorted(self._first, key=lambda drop: drop.line),
            not_remembered=self.not_remembered,
        )
