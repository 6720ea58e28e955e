"""What every metric reads and returns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class EvaluatedRow:
    """A row of the dataset and a model's responses to its prompt."""

    row: int
    """Number of the row in its file, from 1 as errors name it."""
    prompt: list[dict[str, Any]]
    """The messages that were sent."""
    reference: str
    """The text of the last assistant turn; empty for a row without one."""
    responses: tuple[str | None, ...]
    """One for each sample; None where the engine rejected the request."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row as it is in the file, for metrics and slices that read a field of their own."""
    reference_tool_calls: Sequence[Mapping[str, Any]] = ()
    """The calls of the last assistant turn, in OpenAI's form."""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """The calls of the first sample."""
    reference_logprobs: Sequence[float] | None = None
    """Log-probability of each token of the reference under the model, if a metric needs it."""
    others: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    """The responses of the evaluation's other models, by role."""

    @property
    def source(self) -> str:
        """The text of the last user message, which a translation translates."""
        return next((str(m["content"]) for m in reversed(self.prompt) if m["role"] == "user"), "")

    @property
    def response(self) -> str:
        """The first sample; empty where the engine rejected the request."""
        return self.responses[0] or ""


@dataclass(frozen=True)
class CorpusStatistics:
    """Sums over sentences from which a corpus metric is computed, so that rows can be resampled."""

    rows: Sequence[Sequence[float]]
    """The statistics of each row: shape (rows, statistics)."""
    compute: Callable[[Sequence[float]], float]
    """Returns the value of the metric from the sums over the rows of a sample."""


@dataclass(frozen=True)
class MetricValues:
    """The value of a metric for one model, and what it is computed from."""

    value: float
    row_values: Sequence[float | None]
    """One for each row; None where the metric does not apply, which excludes the row from the mean."""
    signature: str
    """Everything on which the value depends besides the texts: library, version, tokenizer, options."""
    higher_is_better: bool = True
    is_share: bool = False
    """Whether each row's value is 0 or 1, so that intervals and tests of shares apply."""
    corpus: CorpusStatistics | None = None
    """For a metric of the corpus, whose value is not the mean of its rows' values."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Counts and further values, as JSON."""
    row_details: Sequence[Mapping[str, Any]] = ()
    """Further values of each row, as JSON; empty for a metric that has none."""
    lowest: float = -math.inf
    highest: float = math.inf
    """The values that the metric can have are between both, and so are the ends of intervals."""


@dataclass(frozen=True)
class ModelContext:
    """The model that a metric scores, for metrics that do more than compute."""

    role: str
    """Name of the model in the evaluation, such as `model` or `baseline`."""
    folder: Path | None = None
    """Folder of what must survive an interruption, such as the answers of a judge; None keeps nothing."""


class Metric(Protocol):
    """A function of a metric's config that scores all rows of one model."""

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return why the row cannot be scored, before a response exists, or None. `responses` is empty."""
        ...

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score the responses; every row has passed `check_row`."""
        ...


@runtime_checkable
class ModelMetric(Metric, Protocol):
    """A metric that sends requests, and keeps the responses to them."""

    def score_model(self, rows: Sequence[EvaluatedRow], context: ModelContext) -> MetricValues:
        """Score the responses of one model, as `score`."""
        ...


def missing_reference(row: EvaluatedRow) -> str | None:
    """Return that a row has no reference, as `Metric.check_row` reports it."""
    return None if row.reference.strip() else "has no reference"


@runtime_checkable
class HostMetric(Protocol):
    """A metric that needs a program or a package which not every host has."""

    def check_host(self, rows: Sequence[EvaluatedRow]) -> None:
        """Raise a ProgramError that says how to add what is missing, before a response exists."""
        ...
