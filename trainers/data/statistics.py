"""Statistics of the rows of a file, collected in constant memory."""

import math
import random
from collections import Counter
from typing import Final

from pydantic import BaseModel, Field

from trainers.data.conversation import to_messages
from trainers.data.formats import FLAT_FIELDS, Row, RowFormat

SAMPLE_SIZE: Final = 10_000
BATCH_SIZE: Final = 1_000
# A million rows use about 110 MB of memory; the hash of a row has 64 bits.
MAX_REMEMBERED_ROWS: Final = 1_000_000


class Distribution(BaseModel):
    """Distribution of a length over all valid rows."""

    min: int = Field(description="Minimum.")
    mean: float = Field(description="Mean.")
    p50: int = Field(description="Median; with more than 10,000 rows, of a random sample of 10,000.")
    p95: int = Field(description="95th percentile, of the same sample.")
    max: int = Field(description="Maximum.")


class Statistics(BaseModel):
    """Statistics of the valid rows; distributions are null if there is none."""

    prompt_characters: Distribution | None = Field(
        None, description="Characters of a row's messages by other roles than assistant."
    )
    completion_characters: Distribution | None = Field(
        None,
        description="Characters of a row's assistant messages or `text`; in a preference row, of the chosen "
        "ones.",
    )
    turns: Distribution | None = Field(None, description="Messages per row, including system messages.")
    roles: dict[str, int] = Field({}, description="Number of messages by role, over all valid rows.")
    labels: dict[str, int] = Field(
        {}, description="Number of rows by their `label`, of those in which it is `true` or `false`."
    )
    duplicates: int = Field(
        0,
        description="Number of rows that are equal to an earlier row, byte for byte. Rows are compared "
        "with the first million different rows, so in a longer file this is a lower bound.",
    )


class LengthSampler:
    """Minimum, maximum, mean and a uniform sample (Li's algorithm L, 1994) of several lengths per row.

    Rows are processed in batches of a thousand: one by one, they would take as long as their parsing.
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        self._min, self._max, self._totals = [0] * width, [0] * width, [0] * width
        self._pending: list[tuple[int, ...]] = []
        self._sample: list[tuple[int, ...]] = []
        self._random = random.Random(1).random  # noqa: S311  # Not for security.
        self._weight = 1.0
        self._next = SAMPLE_SIZE - 1
        self._advance()

    def add(self, lengths: tuple[int, ...]) -> None:
        """Add the lengths of a row."""
        self._pending.append(lengths)
        if len(self._pending) >= BATCH_SIZE:
            self._count_pending()

    def distribution(self, column: int) -> Distribution | None:
        """Return the distribution of one of the lengths, or None if there are no rows."""
        self._count_pending()
        if not self._count:
            return None
        ordered, last = sorted(row[column] for row in self._sample), len(self._sample) - 1
        return Distribution(
            min=self._min[column],
            mean=self._totals[column] / self._count,
            p50=ordered[round(last * 0.5)],
            p95=ordered[round(last * 0.95)],
            max=self._max[column],
        )

    def _count_pending(self) -> None:
        rows, before = self._pending, self._count
        for column, values in enumerate(zip(*rows, strict=True)):
            least, greatest = min(values), max(values)
            self._min[column] = min(self._min[column], least) if before else least
            self._max[column] = max(self._max[column], greatest)
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
    """Collector of the statistics of a file, row by row."""

    def __init__(self) -> None:
        self.duplicates = 0
        self._measures = LengthSampler(3)
        self._roles: list[str] = []
        self._role_counts: Counter[str] = Counter()
        self._label_counts: Counter[str] = Counter()
        self._first_lines: dict[int, int] = {}

    def first_line(self, number: int, line: bytes) -> int | None:
        """Return the number of an earlier line with the same row, or None."""
        # Nearly all lines have the same ending; stripping it from each would copy them all.
        ends_with_newline = line[-1:] == b"\n" and line[-2:] != b"\r\n"
        key = hash(line if ends_with_newline else line.rstrip(b"\r\n") + b"\n")
        first = self._first_lines.get(key)
        if first is not None:
            self.duplicates += 1
        elif len(self._first_lines) < MAX_REMEMBERED_ROWS:
            self._first_lines[key] = number
        return first

    def add(self, row: Row, row_format: RowFormat) -> None:
        """Add a valid row."""
        prompt, completion, roles = 0, 0, self._roles
        if type(label := row.get("label")) is bool:
            self._label_counts["true" if label else "false"] += 1
        lengths = turn_lengths(row, row_format)
        for role, characters in lengths:
            roles.append(role)
            if role in ("assistant", "text"):
                completion += characters
            else:
                prompt += characters
        self._measures.add((prompt, completion, len(lengths)))
        if len(roles) >= BATCH_SIZE:
            self._count_roles()

    def statistics(self) -> Statistics:
        """Return the statistics of the rows so far."""
        self._count_roles()
        prompt, completion, turns = map(self._measures.distribution, range(3))
        return Statistics(
            prompt_characters=prompt,
            completion_characters=completion,
            turns=turns,
            roles=dict(self._role_counts),
            labels=dict(self._label_counts),
            duplicates=self.duplicates,
        )

    def _count_roles(self) -> None:
        self._role_counts.update(self._roles)
        self._roles.clear()


def turn_lengths(row: Row, row_format: RowFormat) -> list[tuple[str, int]]:
    """Return role and number of characters of each message of a valid row.

    The two most common formats are read without conversion.
    """
    plain = not row.get("system") and not row.get("history")
    if row_format is RowFormat.messages and plain:
        return [
            (message["role"], len(content) if type(content) is str else _length(content))
            for message in row["messages"]
            for content in (message.get("content"),)
        ]
    if row_format is RowFormat.text:
        return [("text", len(row["text"]))]
    if row_format in FLAT_FIELDS and plain and not row.get("input"):
        prompt_field, completion_field = FLAT_FIELDS[row_format]
        return [("user", len(row[prompt_field])), ("assistant", len(row[completion_field]))]
    return [(message["role"], len(message["content"])) for message in to_messages(row, row_format)]


def _length(content: list[dict[str, str]] | None) -> int:
    return sum(len(part["text"]) for part in content or ())
