"""What weakens a comparison: rows that are left out, and values that were measured under other conditions."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.comparison.common_rows import CommonRows
from trainers.comparison.stored_evaluation import StoredEvaluation
from trainers.evaluation.provenance import find_differences
from trainers.metrics.metric import MetricValues

MAX_VALUE_CHARACTERS = 60


def list_warnings(
    evaluations: Sequence[StoredEvaluation],
    common: CommonRows,
    values: Mapping[str, Mapping[str, MetricValues]],
    metrics: Sequence[str],
) -> list[str]:
    """Return a sentence for each thing that weakens the comparison."""
    return [
        *_name_excluded_rows(common),
        *_name_missing_metrics(values, metrics),
        *_name_signatures(evaluations, metrics),
        *_name_conditions(evaluations),
        *_name_stops(evaluations),
    ]


def _name_excluded_rows(common: CommonRows) -> list[str]:
    return [
        f"{excluded:,} of {excluded + common.n:,} rows of {label} are not in every other evaluation; they do "
        "not count."
        for label, excluded in common.excluded.items()
        if excluded
    ]


def _name_missing_metrics(
    values: Mapping[str, Mapping[str, MetricValues]], metrics: Sequence[str]
) -> list[str]:
    return [
        f"{metric} is not compared: it is not the mean of its rows, and this version cannot compute it again "
        f"for {label}."
        for label, own in values.items()
        for metric in metrics
        if metric not in own
    ]


def _name_signatures(evaluations: Sequence[StoredEvaluation], metrics: Sequence[str]) -> list[str]:
    first, *others = evaluations
    return [
        f"{metric} was measured in different ways: {first.scores[metric].signature} for {first.label}, "
        f"{other.scores[metric].signature} for {other.label}."
        for other in others
        for metric in metrics
        if other.scores[metric].signature != first.scores[metric].signature
    ]


def _name_conditions(evaluations: Sequence[StoredEvaluation]) -> list[str]:
    first, *others = evaluations
    warnings = []
    for other in others:
        found = find_differences(first.model.provenance, other.model.provenance)
        # Unequal signatures have a warning of their own.
        unequal = [
            f"{name} ({_shorten(own)} and {_shorten(theirs)})"
            for name, (own, theirs) in found.items()
            if not name.startswith("metrics.")
        ]
        if unequal:
            warnings.append(
                f"{first.label} and {other.label} were evaluated under different conditions: "
                f"{', '.join(unequal)}."
            )
    return warnings


def _name_stops(evaluations: Sequence[StoredEvaluation]) -> list[str]:
    stops = {each.label: each.result.early_stop for each in evaluations}
    return [
        f"{label} stopped early, after {stop.n:,} of {stop.rows:,} rows: p-values and intervals are too "
        "certain."
        for label, stop in stops.items()
        if stop is not None and stop.has_stopped
    ]


def _shorten(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}…"
