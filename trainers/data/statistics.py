"""Figures of the rows of a file, gathered in constant memory."""

import math
import random
from collections import Counter
from typing import Final

from pydantic import BaseModel, Field

from trainers.data.conversation import to_messages
from trainers.data.formats import FLAT_FIELDS, Row, RowFormat

SAMPLE_SIZE: Final = 10_000
BATCH_SIZE: Final = 1_000
# A million rows take about 110 MB; the hash of a row is 64 bits wide.
MAX_REMEMBERED_ROWS: Final = 1_000_000


class Distribution(BaseModel):
    """Figures of one length over all valid rows."""

    min: int
    mean: float
    p50: int = Field(description="Median; from 10,001 rows on that of a random sample of 10,000.")
    p95: int = Field(description="95th percentile, of the same sample.")
    max: int


class Statistics(BaseModel):
    """Figures of the valid rows; a distribution is null where there is none."""

    prompt_characters: Distribution | None = Field(None, description="What is not said by the assistant.")
    completion_characters: Distribution | None = Field(
        None, description="What the assistant says; of a preference row, the chosen answer."
    )
    turns: Distribution | None = Field(None, description="Messages of a row, the system turn included.")
    roles: dict[str, int] = Field({}, description="Messages by role, over all valid rows.")
    duplicates: int = Field(
        0,
        description="Rows equal, byte for byte, to an earlier row. The first million different rows are "
        "remembered; in a longer file this is a lower bound.",
    )


class LengthSampler:
    """Smallest, largest, mean, and a uniform sample of rows (Li's algorithm L, 1994), of several lengths.

    Rows are counted a thousand at a time: one by one, they cost as much as their parsing.
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        self._least, self._most, self._totals = [0] * width, [0] * width, [0] * width
        self._pending: list[tuple[int, ...]] = []
        self._sample: list[tuple[int, ...]] = []
        self._random = random.Random(1).random  # noqa: S311  # The sample guards no secret.
        self._weight = 1.0
        self._next = SAMPLE_SIZE - 1
        self._advance()

    def add(self, lengths: tuple[int, ...]) -> None:
        """Counts the lengths of one more row."""
        self._pending.append(lengths)
        if len(self._pending) >= BATCH_SIZE:
            self._count_pending()

    def distribution(self, column: int) -> Distribution | None:
        """The figures of one of the lengths; None without any row."""
        self._count_pending()
        if not self._count:
            return None
        ordered, last = sorted(row[column] for row in self._sample), len(self._sample) - 1
        return Distribution(
            min=self._least[column],
            mean=self._totals[column] / self._count,
            p50=ordered[round(last * 0.5)],
            p95=ordered[round(last * 0.95)],
            max=self._most[column],
        )

    def _count_pending(self) -> None:
        rows, before = self._pending, self._count
        for column, values in enumerate(zip(*rows, strict=True)):
            least, most = min(values), max(values)
            self._least[column] = min(self._least[column], least) if before else least
            self._most[column] = max(self._most[column], most)
            self._totals[column] += sum(values)
        self._count += len(rows)
        self._sample += rows[: SAMPLE_SIZE - len(self._sample)]
        while self._next < self._count:
            self._sample[int(self._random() * SAMPLE_SIZE)] = rows[self._next - before]
            self._advance()
        rows.clear()

    def _advance(self) -> None:
        # 1 - random() is never 0, which has no logarithm.
        self._weight *= math.exp(math.log(1 - self._random()) / SAMPLE_SIZE)
        self._next += int(math.log(1 - self._random()) / math.log1p(-self._weight)) + 1


class StatisticsCollector:
    """The figures of a file, row by row."""

    def __init__(self) -> None:
        self.duplicates = 0
        self._measures = LengthSampler(3)
        self._roles: list[str] = []
        self._role_counts: Counter[str] = Counter()
        self._first_lines: dict[int, int] = {}

    def first_line(self, number: int, line: bytes) -> int | None:
        """The line on which the same row stood before, if it did."""
        # Nearly all lines end alike; taking the end off each would copy them all.
        key = hash(line if _has_usual_end(line) else line.rstrip(b"\r\n") + b"\n")
        first = self._first_lines.get(key)
        if first is not None:
            self.duplicates += 1
        elif len(self._first_lines) < MAX_REMEMBERED_ROWS:
            self._first_lines[key] = number
        return first

    def add(self, row: Row, row_format: RowFormat) -> None:
        """Counts one more valid row."""
        prompt, completion, roles = 0, 0, self._roles
        lengths = turn_lengths(row, row_format)
        for role, characters in lengths:
            roles.append(role)
            if role == "assistant":
                completion += characters
            else:
                prompt += characters
        self._measures.add((prompt, completion, len(lengths)))
        if len(roles) >= BATCH_SIZE:
            self._count_roles()

    def statistics(self) -> Statistics:
        """The figures so far."""
        self._count_roles()
        prompt, completion, turns = map(self._measures.distribution, range(3))
        return Statistics(
            prompt_characters=prompt,
            completion_characters=completion,
            turns=turns,
            roles=dict(self._role_counts),
            duplicates=self.duplicates,
        )

    def _count_roles(self) -> None:
        self._role_counts.update(self._roles)
        self._roles.clear()


def _has_usual_end(line: bytes) -> bool:
    return line[-1:] == b"\n" and line[-2:] != b"\r\n"


def turn_lengths(row: Row, row_format: RowFormat) -> list[tuple[str, int]]:
    """Role and characters of every message of a valid row; the two commonest shapes need no conversion."""
    if row_format is RowFormat.messages:
        return [
            (message["role"], len(content) if type(content) is str else _length(content))
            for message in row["messages"]
            for content in (message.get("content"),)
        ]
    if row_format in FLAT_FIELDS and not row.get("system") and not row.get("input"):
        asked, answered = FLAT_FIELDS[row_format]
        return [("user", len(row[asked])), ("assistant", len(row[answered]))]
    return [(message["role"], len(message["content"])) for message in to_messages(row, row_format)]


def _length(content: list[dict[str, str]] | None) -> int:
    return sum(len(part["text"]) for part in content or ())
