"""The rows that several evaluations have in common: those with the same prompt and the same reference."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.comparison.stored_evaluation import StoredEvaluation
from trainers.evaluation.row_index import IndexedRow, ModelRow, StoredRow
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError


class EvaluationsDiffer(ProgramError):
    code = ErrorCode.evaluations_differ


@dataclass(frozen=True)
class CommonRows:
    """The common rows as each evaluation has them, in the order of the first one."""

    rows: dict[str, list[StoredRow]]
    """By the label of the evaluation; all lists have the same length."""
    excluded: dict[str, int]
    """Rows that another evaluation lacks, by the label of the evaluation that has them."""

    @property
    def n(self) -> int:
        """The number of common rows."""
        return len(next(iter(self.rows.values())))


def load_common_rows(evaluations: Sequence[StoredEvaluation]) -> CommonRows:
    """Return the common rows; raises EvaluationsDiffer if there are none.

    Of equal rows, the nth of one evaluation belongs to the nth of the others.
    """
    positions = {each.label: _number(each.index) for each in evaluations}
    first, *others = positions.values()
    common = [key for key in first if all(key in other for other in others)]
    if not common:
        raise EvaluationsDiffer(
            "The evaluations have no row in common: no prompt and reference is the same.",
            "Compare evaluations on the same dataset, with the same prompts.",
        )
    chosen = {label: [numbered[key] for key in common] for label, numbered in positions.items()}
    return CommonRows(
        rows={each.label: each.read_rows(chosen[each.label]) for each in evaluations},
        excluded={each.label: len(each.index) - len(common) for each in evaluations},
    )


def list_common_clusters(
    evaluations: Sequence[StoredEvaluation], common: CommonRows
) -> tuple[str | None, list[str] | None]:
    """Return the field that the first evaluation with clusters names, and its value in each common row."""
    for each in evaluations:
        field = each.result.clusters
        if field is not None:
            rows = common.rows[each.label]
            return field, [json.dumps(row.fields.get(field), sort_keys=True) for row in rows]
    return None, None


def model_row(row: StoredRow, role: str) -> ModelRow:
    """Return a model's part of a row; one without responses if it has none."""
    return row.models.get(role) or ModelRow([])


def evaluated_rows(rows: Sequence[StoredRow], role: str) -> list[EvaluatedRow]:
    """Return the rows with one model's responses, as metrics read them."""
    return [
        EvaluatedRow(row.row, row.prompt, row.reference, tuple(model_row(row, role).responses), row.fields)
        for row in rows
    ]


def write_common_rows(
    path: Path,
    evaluations: Sequence[StoredEvaluation],
    common: CommonRows,
    values: Mapping[str, Mapping[str, MetricValues]],
) -> None:
    """Write the rows with the responses and values of all evaluations, each under its label."""
    with path.open("w", encoding="utf-8") as file:
        for position, row in enumerate(common.rows[evaluations[0].label]):
            models = {
                each.label: {
                    "responses": model_row(common.rows[each.label][position], each.model.role).responses,
                    "values": {name: one.row_values[position] for name, one in values[each.label].items()},
                }
                for each in evaluations
            }
            line = {
                "row": row.row,
                "prompt": row.prompt,
                "reference": row.reference,
                "fields": row.fields,
                "models": models,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _number(index: Sequence[IndexedRow]) -> dict[tuple[str, int], IndexedRow]:
    """Return the rows by their hash and how many equal ones are before them."""
    counts: dict[str, int] = defaultdict(int)
    numbered = {}
    for row in index:
        numbered[row.key, counts[row.key]] = row
        counts[row.key] += 1
    return numbered
