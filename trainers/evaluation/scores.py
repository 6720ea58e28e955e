"""The scores of the models of an evaluation, and its rows with the value of each response."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.configs.metrics import MetricConfig
from trainers.evaluation.results import Score
from trainers.evaluation.scored_rows import ToolCallList, evaluated_row, other_fields, reference_tool_calls
from trainers.metrics.metric import MetricValues, ModelContext
from trainers.metrics.table import score_rows
from trainers.rendering.render import PromptCompletion
from trainers.runtime import run_dir as files

Responses = Mapping[int, Sequence[str | None]]
"""The samples of one model by row; None where the engine rejected the request."""

Values = dict[str, MetricValues]
"""The values of one model by the metric's name."""


def measure(
    metrics: Sequence[MetricConfig],
    pairs: Sequence[PromptCompletion],
    responses: Responses,
    context: ModelContext | None = None,
    others: Mapping[str, Responses] | None = None,
    tool_calls: Mapping[int, ToolCallList] | None = None,
    reference_logprobs: Mapping[int, Sequence[float] | None] | None = None,
) -> Values:
    """Return the values of all metrics for one model.

    `others` are the responses of the other models by role, `tool_calls` those of the first samples by row,
    and `reference_logprobs` the scores of the references' tokens by row.
    """
    rows = [
        evaluated_row(
            pair,
            responses[pair.row],
            {role: samples[pair.row] for role, samples in (others or {}).items()},
            (tool_calls or {}).get(pair.row, ()),
            (reference_logprobs or {}).get(pair.row),
        )
        for pair in pairs
    ]
    context = context or ModelContext("model")
    return {config.label: score_rows(config, rows, context) for config in metrics}


def list_scores(values: Values, responses: Responses, clusters: Sequence[str] | None = None) -> list[Score]:
    """Return the scores of one model, the main metric's first."""
    n_failed = sum(None in samples for samples in responses.values())
    return [make_score(name, one, n_failed, clusters) for name, one in values.items()]


def list_rows(
    pairs: Sequence[PromptCompletion],
    responses: Mapping[str, Responses],
    values: Mapping[str, Values],
    tool_calls: Mapping[str, Mapping[int, ToolCallList]] | None = None,
    ends: Mapping[str, Mapping[int, Mapping[str, Any]]] | None = None,
) -> list[dict[str, Any]]:
    """Return the lines of `rows.jsonl`, with calls if there are any; the mappings are by the model's role.

    `ends` are the reasons and token counts of the first samples.
    """
    lines = []
    for position, pair in enumerate(pairs):
        models: dict[str, dict[str, Any]] = {}
        for role, samples in responses.items():
            calls = list((tool_calls or {}).get(role, {}).get(pair.row, ()))
            models[role] = {
                "responses": list(samples[pair.row]),
                **({"tool_calls": calls} if calls else {}),
                **(ends or {}).get(role, {}).get(pair.row, {}),
                "values": {name: one.row_values[position] for name, one in values[role].items()},
                **_list_details(values[role], position),
            }
        expected = list(reference_tool_calls(pair))
        lines.append(
            {
                "row": pair.row,
                "prompt": pair.prompt,
                "reference": pair.completion_text,
                **({"reference_tool_calls": expected} if expected else {}),
                "fields": other_fields(pair),
                "models": models,
            }
        )
    return lines


def _list_details(values: Values, position: int) -> dict[str, Any]:
    """Return what metrics report of a row besides its values."""
    details = {name: dict(one.row_details[position]) for name, one in values.items() if one.row_details}
    return {"details": details} if details else {}


def publish_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows so that a reader sees all of them or no file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    files.sync_folder(path.parent)


def make_score(
    name: str, values: MetricValues, n_failed: int, clusters: Sequence[str] | None = None
) -> Score:
    """Return the score of one metric with its interval; `n_failed` rows have no response."""
    # Importing scipy takes a second, which a program that only generates need not spend.
    from trainers.statistics.score_interval import score_interval

    return Score(
        metric=name,
        value=values.value,
        interval_95=score_interval(values, clusters=clusters),
        n=sum(value is not None for value in values.row_values),
        failed=n_failed,
        higher_is_better=values.higher_is_better,
        signature=values.signature,
        details=dict(values.details),
    )
