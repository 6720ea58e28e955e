"""The rows of an evaluation as a Parquet file: a column for each model's response and each of its values."""

import json
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trainers.evaluation.results import EvaluationResult
from trainers.evaluation.row_index import ModelRow, StoredRow, hash_row, iter_stored_rows

PARQUET: Final = "rows.parquet"
# Rows of a group are in memory together.
GROUP_ROWS: Final = 1000


def write_parquet(rows: Path, result: EvaluationResult, path: Path) -> None:
    """Write the rows with the columns that the models and metrics of the result need."""
    schema = make_schema(result)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        stored = iter_stored_rows(rows)
        while group := list(islice(stored, GROUP_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist([_flatten(row, result) for row in group], schema))


def make_schema(result: EvaluationResult) -> pa.Schema:
    """Return the columns: those of the row, then of each model `.response` and `.values.<metric>`."""
    columns = [
        pa.field("row", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("prompt", pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))),
        pa.field("reference", pa.string()),
        pa.field("fields", pa.string()),
    ]
    for model in result.models:
        columns.append(pa.field(f"{model.role}.response", pa.string()))
        columns.append(pa.field(f"{model.role}.responses", pa.list_(pa.string())))
        columns += [pa.field(f"{model.role}.values.{score.metric}", pa.float64()) for score in model.scores]
    return pa.schema(columns)


def _flatten(row: StoredRow, result: EvaluationResult) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "row": row.row,
        "key": hash_row(row.prompt, row.reference),
        "prompt": [
            {"role": _text(turn.get("role")), "content": _text(turn.get("content"))} for turn in row.prompt
        ],
        "reference": row.reference,
        # Rows may have any fields, and a column of Parquet has one type.
        "fields": json.dumps(row.fields, ensure_ascii=False),
    }
    for model in result.models:
        own = row.models.get(model.role, ModelRow([]))
        flat[f"{model.role}.response"] = own.responses[0] if own.responses else None
        flat[f"{model.role}.responses"] = own.responses
        flat |= {
            f"{model.role}.values.{score.metric}": own.values.get(score.metric) for score in model.scores
        }
    return flat


def _text(value: Any) -> str:
    """Return a text as it is, and content of several parts as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
