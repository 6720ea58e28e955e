"""Scores and differences on parts of the rows: by a field of the row, or by the length of the prompt."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles

from pydantic import BaseModel, Field

from trainers.configs.stages.evaluate import LengthSlices
from trainers.evaluation.results import PairedDifference, Score
from trainers.evaluation.scores import Values, make_score
from trainers.metrics.metric import CorpusStatistics, MetricValues
from trainers.rendering.render import PromptCompletion

MIN_ROWS = 5
MAX_VALUES = 20


class SliceScores(BaseModel):
    """The scores of all models on one slice."""

    slice: str = Field(description="What the rows have in common, such as `level=hard`.")
    n: int = Field(description="Rows of the slice.")
    scores: dict[str, list[Score]] = Field(description="Scores by the name of the model.")
    differences: list[PairedDifference] = Field(
        description="Of the first model to each other one; adjusted for all slices together."
    )


@dataclass(frozen=True)
class SliceReport:
    """All slices, those that became worse first, and a warning for each of these."""

    slices: list[SliceScores]
    warnings: list[str]


def score_slices(
    slices: Sequence[str | LengthSlices],
    pairs: Sequence[PromptCompletion],
    values: Mapping[str, Values],
    clusters: Sequence[str] | None = None,
) -> SliceReport:
    """Score each slice of at least 5 rows, and compare the models on it."""
    if not slices:
        return SliceReport([], [])
    from trainers.statistics.comparison import compare_models

    found: list[SliceScores] = []
    for label, positions in _list_slices(slices, pairs):
        keys = clusters and [clusters[position] for position in positions]
        parts = {
            role: {name: take_rows(one, positions) for name, one in of_role.items()}
            for role, of_role in values.items()
        }
        scores = {
            role: [make_score(name, one, 0, keys) for name, one in part.items()]
            for role, part in parts.items()
        }
        found.append(
            SliceScores(
                slice=label,
                n=len(positions),
                scores=scores,
                differences=compare_models(parts, clusters=keys),
            )
        )
    found = _adjust(found)
    found.sort(key=_worst)
    return SliceReport(found, [warning for one in found for warning in _describe_losses(one)])


def take_rows(values: MetricValues, positions: Sequence[int]) -> MetricValues:
    """Return the values of some of the rows, and the metric's value over them."""
    row_values = [values.row_values[position] for position in positions]
    if values.corpus is not None:
        rows = [values.corpus.rows[position] for position in positions]
        compute = values.corpus.compute
        value = compute([sum(column) for column in zip(*rows, strict=True)])
        return replace(values, value=value, row_values=row_values, corpus=CorpusStatistics(rows, compute))
    scored = [value for value in row_values if value is not None]
    return replace(values, value=sum(scored) / len(scored) if scored else 0.0, row_values=row_values)


def _list_slices(
    slices: Sequence[str | LengthSlices], pairs: Sequence[PromptCompletion]
) -> Iterator[tuple[str, list[int]]]:
    for one in slices:
        labels = _label_by_field(one, pairs) if isinstance(one, str) else _label_by_length(one, pairs)
        for label, count in Counter(labels).most_common(MAX_VALUES):
            if count >= MIN_ROWS:
                yield label, [position for position, other in enumerate(labels) if other == label]


def _label_by_field(name: str, pairs: Sequence[PromptCompletion]) -> list[str]:
    return [f"{name}={pair.source.get(name)}"[:200] for pair in pairs]


def _label_by_length(slices: LengthSlices, pairs: Sequence[PromptCompletion]) -> list[str]:
    lengths = [sum(len(str(message["content"])) for message in pair.prompt) for pair in pairs]
    bounds = slices.bounds or sorted({round(bound) for bound in quantiles(lengths, n=3)})
    edges = [0, *bounds]

    def label(length: int) -> str:
        place = sum(length >= bound for bound in bounds)
        upper = f"–{bounds[place] - 1}" if place < len(bounds) else " or more"
        return f"length={edges[place]}{upper}"

    return [label(length) for length in lengths]


def _adjust(slices: list[SliceScores]) -> list[SliceScores]:
    """Adjust the p-values of all slices, metrics and models together by Holm's method."""
    from trainers.statistics.adjustment import adjust_holm
    from trainers.statistics.comparison import ALPHA

    adjusted = iter(adjust_holm([one.p_value for part in slices for one in part.differences]))
    return [
        part.model_copy(
            update={
                "differences": [
                    one.model_copy(update={"p_adjusted": p} | ({"verdict": "undecided"} if p > ALPHA else {}))
                    for one, p in zip(part.differences, adjusted, strict=False)
                ]
            }
        )
        for part in slices
    ]


def _worst(part: SliceScores) -> tuple[bool, float]:
    """Return the key by which what became worse precedes the rest, the surest first."""
    losses = [one.p_adjusted for one in part.differences if one.verdict == "worse"]
    return not losses, min(losses, default=0.0)


def _describe_losses(part: SliceScores) -> Iterator[str]:
    for one in part.differences:
        if one.verdict == "worse":
            yield (
                f"On {part.slice} (n = {part.n}), {one.role!r} is significantly worse than {one.other!r}: "
                f"{one.metric} {one.difference:+.4g} (adjusted p = {one.p_adjusted:.2g})."
            )
