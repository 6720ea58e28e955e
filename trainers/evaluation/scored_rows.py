"""The rows of an evaluation, and the check that its metrics can score them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.configs.metrics import METRIC_KINDS, MetricConfig
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.data.formats import FIELD_SETS, detect_format
from trainers.metrics.metric import EvaluatedRow
from trainers.metrics.table import make_metric
from trainers.rendering.render import PromptCompletion, dataset_path, read_prompt_completions
from trainers.runtime.errors import DatasetInvalid

ToolCallList = Sequence[Mapping[str, Any]]
"""Calls in OpenAI's form."""


def load_scored_rows(config: EvaluateConfig) -> list[PromptCompletion]:
    """Return the last turn of each row.

    Raises DatasetFileNotFound, or DatasetInvalid for a row that one of the metrics cannot score.
    """
    return read_scored_rows(
        dataset_path(config.dataset),
        config.metrics,
        config.max_rows,
        response_fields=config.response_fields,
        clusters=config.clusters,
        slice_fields=config.slice_fields,
    )


def read_scored_rows(
    path: Path,
    metrics: Sequence[MetricConfig],
    max_rows: int | None,
    name: str | None = None,
    response_fields: Sequence[str] = (),
    clusters: str | None = None,
    slice_fields: Sequence[str] = (),
) -> list[PromptCompletion]:
    """Return the last turn of the first rows of a file, which is called `name`.

    Raises as `load_scored_rows`, also for a row without responses in `response_fields` or without the field
    `clusters`, and for one of `slice_fields` that no row has.
    """
    pairs = [turns[-1] for turns in read_prompt_completions(str(path), max_rows)]
    if not pairs:
        raise DatasetInvalid(f"The dataset {path} has no rows to score.", "Add rows.")
    check_scorable(pairs, metrics, name or str(path))
    for field in response_fields:
        for pair in pairs:
            try:
                read_stored_samples(pair.source, field)
            except ValueError as error:
                raise DatasetInvalid(
                    f"Row {pair.row} of {name or path} has no responses to score: {error}.",
                    "Add the field to each row, or name another one in `{field: …}`.",
                ) from None
    list_clusters(clusters, pairs)
    for field in slice_fields:
        if all(pair.source.get(field) is None for pair in pairs):
            raise DatasetInvalid(
                f"No row of {name or path} has a field {field!r}, which `slices` names.",
                "Name a field of the rows; a slice is made of the rows with one of its values.",
            )
    return pairs


def read_stored_samples(row: Mapping[str, Any], name: str) -> tuple[str | None, ...]:
    """Return the responses in a field of a row: a text, null, or a list of these; raises ValueError."""
    if name not in row:
        raise ValueError(f"it has no field `{name}`")
    value = row[name]
    samples = value if isinstance(value, list) else [value]
    if not samples or not all(isinstance(sample, str | None) for sample in samples):
        raise ValueError(f"`{name}` must be a text, null, or a list of these")
    return tuple(samples)


def check_scorable(pairs: Sequence[PromptCompletion], metrics: Sequence[MetricConfig], name: str) -> None:
    """Raise DatasetInvalid for a row of the file called `name` that one of the metrics cannot score."""
    for config in metrics:
        metric = make_metric(config)
        for pair in pairs:
            reason = metric.check_row(evaluated_row(pair))
            if reason is not None:
                raise DatasetInvalid(
                    f"Row {pair.row} of {name} {reason}. The metric {config.label} cannot score it.",
                    "Correct the row, or choose another metric. The metrics are "
                    f"{', '.join(sorted(METRIC_KINDS))}.",
                )


def evaluated_row(
    pair: PromptCompletion,
    responses: Sequence[str | None] = (),
    others: Mapping[str, Sequence[str | None]] | None = None,
    tool_calls: ToolCallList = (),
    reference_logprobs: Sequence[float] | None = None,
) -> EvaluatedRow:
    """Return a row with a model's responses to it, and the calls of the first, as a metric reads it."""
    return EvaluatedRow(
        pair.row,
        pair.prompt,
        pair.completion_text,
        tuple(responses),
        pair.source,
        reference_tool_calls=reference_tool_calls(pair),
        tool_calls=tool_calls,
        reference_logprobs=reference_logprobs,
        others=others or {},
    )


def reference_tool_calls(pair: PromptCompletion) -> ToolCallList:
    """Return the calls of the row's last assistant message."""
    return pair.completion[-1].get("tool_calls") or () if pair.completion else ()


def list_clusters(field: str | None, pairs: Sequence[PromptCompletion]) -> list[str] | None:
    """Return the key of each row's cluster, or None if all rows are independent.

    Raises DatasetInvalid for a row without the field.
    """
    if field is None:
        return None
    for pair in pairs:
        if pair.source.get(field) is None:
            raise DatasetInvalid(
                f"Row {pair.row} has no field {field!r}, which `clusters` names.",
                "Add the field to each row, or name another one.",
            )
    return [json.dumps(pair.source[field], sort_keys=True) for pair in pairs]


def other_fields(pair: PromptCompletion) -> dict[str, Any]:
    """Return the fields of the row that contain neither its prompt nor its reference."""
    row_format = detect_format(pair.source)
    text = frozenset().union(*FIELD_SETS[row_format]) if row_format is not None else frozenset()
    return {name: value for name, value in pair.source.items() if name not in text}
