"""Figures of the rows of a file, gathered in constant memory."""

import random
from typing import Final

from pydantic import BaseModel, Field

from trainers.data.conversation import as_messages
from trainers.data.formats import FLAT_FIELDS, Row, RowFormat

SAMPLE_SIZE: Final = 10_000
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


class Gauge:
    """Smallest, largest, mean, and a uniform sample of fixed size (Vitter's algorithm R), of a length."""

    def __init__(self, seed: int) -> None:
        self.count = self.total = self.max = self.min = 0
        self._sample: list[int] = []
        self._random = random.Random(seed).random  # noqa: S311  # The sample guards no secret.

    def add(self, value: int) -> None:
        """Counts one more value."""
        if value > self.max:
            self.max = value
        if value < self.min or not self.count:
            self.min = value
        self.count += 1
        self.total += value
        if self.count <= SAMPLE_SIZE:
            self._sample.append(value)
        elif (place := int(self._random() * self.count)) < SAMPLE_SIZE:
            self._sample[place] = value

    def distribution(self) -> Distribution | None:
        """The figures of what was added; None without any."""
        if not self.count:
            return None
        ordered, last = sorted(self._sample), len(self._sample) - 1
        return Distribution(
            min=self.min,
            mean=self.total / self.count,
            p50=ordered[round(last * 0.5)],
            p95=ordered[round(last * 0.95)],
            max=self.max,
        )


class Survey:
    """The figures of a file, row by row."""

    def __init__(self) -> None:
        self.duplicates = 0
        self._prompt, self._completion, self._turns = Gauge(1), Gauge(2), Gauge(3)
        self._roles: dict[str, int] = {}
        self._first_lines: dict[int, int] = {}

    def first_line(self, number: int, line: bytes) -> int | None:
        """The line on which the same row stood before, if it did."""
        key = hash(line)
        first = self._first_lines.get(key)
        if first is not None:
            self.duplicates += 1
        elif len(self._first_lines) < MAX_REMEMBERED_ROWS:
            self._first_lines[key] = number
        return first

    def add(self, row: Row, row_format: RowFormat) -> None:
        """Counts one more valid row."""
        prompt, completion, lengths = 0, 0, turn_lengths(row, row_format)
        for role, characters in lengths:
            self._roles[role] = self._roles.get(role, 0) + 1
            if role == "assistant":
                completion += characters
            else:
                prompt += characters
        self._prompt.add(prompt)
        self._completion.add(completion)
        self._turns.add(len(lengths))

    def statistics(self) -> Statistics:
        """The figures so far."""
        return Statistics(
            prompt_characters=self._prompt.distribution(),
            completion_characters=self._completion.distribution(),
            turns=self._turns.distribution(),
            roles=self._roles,
            duplicates=self.duplicates,
        )


def turn_lengths(row: Row, row_format: RowFormat) -> list[tuple[str, int]]:
    """Role and characters of every message of a valid row; the two commonest shapes need no conversion."""
    if row_format in FLAT_FIELDS and not row.get("system") and not row.get("input"):
        asked, answered = FLAT_FIELDS[row_format]
        return [("user", len(row[asked])), ("assistant", len(row[answered]))]
    if row_format is RowFormat.messages:
        return [(message["role"], _length(message.get("content"))) for message in row["messages"]]
    return [(message["role"], len(message["content"])) for message in as_messages(row, row_format)]


def _length(content: str | list[dict[str, str]] | None) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) for part in content or ())
