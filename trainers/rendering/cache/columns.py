"""Rendered rows as batches of Arrow columns."""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainers.rendering.cache.spec import RowKind
from trainers.rendering.render import IGNORE_INDEX, Example, PromptCompletion

_IDS = pa.list_(pa.int32())
_ROW = ("row", pa.int32())
SCHEMAS = {
    RowKind.completions: pa.schema(
        [
            _ROW,
            ("text", pa.large_string()),
            ("input_ids", _IDS),
            ("labels", _IDS),
            ("length", pa.int32()),
            ("loss_tokens", pa.int32()),
            ("prompt_is_prefix", pa.bool_()),
            ("ends", pa.bool_()),
        ]
    ),
    RowKind.pairs: pa.schema(
        [
            _ROW,
            ("prompt_ids", _IDS),
            ("chosen_ids", _IDS),
            ("rejected_ids", _IDS),
            *(
                (f"{side}_{name}", kind)
                for side in ("chosen", "rejected")
                for name, kind in (
                    ("text", pa.large_string()),
                    ("start", pa.int32()),
                    ("length", pa.int32()),
                    ("prompt_is_prefix", pa.bool_()),
                )
            ),
            ("is_trained", pa.bool_()),
        ]
    ),
    RowKind.labelled: pa.schema(
        [
            _ROW,
            ("text", pa.large_string()),
            ("prompt_ids", _IDS),
            ("completion_ids", _IDS),
            ("label", pa.bool_()),
            ("length", pa.int32()),
            ("prompt_is_prefix", pa.bool_()),
        ]
    ),
    RowKind.references: pa.schema(
        [_ROW, ("record", pa.large_string()), ("prompt_ids", _IDS), ("has_answer", pa.bool_())]
    ),
    RowKind.graded: pa.schema(
        [_ROW, ("record", pa.large_string()), ("prompt_ids", _IDS), ("has_answer", pa.bool_())]
    ),
    RowKind.prompts: pa.schema([_ROW, ("record", pa.large_string()), ("prompt_ids", _IDS)]),
}


def completion_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    """Return the columns of `RowKind.completions`."""
    ids = _token_array([example.input_ids for example in examples])
    return _make_batch(
        RowKind.completions,
        [example.row for example in examples],
        [example.text for example in examples],
        ids,
        _label_array(ids, [example.loss_start for example in examples]),
        [example.length for example in examples],
        [example.loss_tokens for example in examples],
        [example.prompt_is_prefix for example in examples],
        [example.ends for example in examples],
    )


def pair_batch(pairs: Sequence[tuple[Example, Example]]) -> pa.RecordBatch:
    """Return the columns of `RowKind.pairs`."""
    # Both completions must start at the same token. Where a template renders the prompt differently before
    # each of them, the earlier start is used.
    starts = [min(chosen.loss_start, rejected.loss_start) for chosen, rejected in pairs]
    sides = list(zip(*pairs, strict=True)) or [(), ()]
    prompts = [chosen.input_ids[:start] for chosen, start in zip(sides[0], starts, strict=True)]
    completions = [
        [example.input_ids[start:] for example, start in zip(side, starts, strict=True)] for side in sides
    ]
    texts = [
        column
        for side in sides
        for column in (
            [example.text for example in side],
            [example.loss_start for example in side],
            [example.length for example in side],
            [example.prompt_is_prefix for example in side],
        )
    ]
    return _make_batch(
        RowKind.pairs,
        [chosen.row for chosen, _ in pairs],
        *map(_token_array, [prompts, *completions]),
        *texts,
        [bool(chosen.loss_tokens and rejected.loss_tokens) for chosen, rejected in pairs],
    )


def labelled_batch(examples: Sequence[Example], labels: Sequence[bool]) -> pa.RecordBatch:
    """Return the columns of `RowKind.labelled`."""
    return _make_batch(
        RowKind.labelled,
        [example.row for example in examples],
        [example.text for example in examples],
        _token_array([example.input_ids[: example.loss_start] for example in examples]),
        _token_array([example.input_ids[example.loss_start :] for example in examples]),
        labels,
        [example.length for example in examples],
        [example.prompt_is_prefix for example in examples],
    )


def prompt_batch(
    kind: RowKind, pairs: Sequence[PromptCompletion], prompt_ids: Sequence[list[int]]
) -> pa.RecordBatch:
    """Return the columns of a kind that has prompts only."""
    rows = [pair.row for pair in pairs]
    # As JSON text: in an Arrow table every message would have the fields of all other messages.
    records = [
        json.dumps(
            {"prompt": pair.prompt, "reference": pair.completion_text}
            | ({"item": pair.source} if kind is RowKind.graded else {})
        )
        for pair in pairs
    ]
    if kind is RowKind.prompts:
        return _make_batch(kind, rows, records, _token_array(prompt_ids))
    # Only these kinds need the configs of rewards, which take long to import.
    from trainers.rewards.score import find_references_without_answer

    missing = set(find_references_without_answer([pair.completion_text for pair in pairs]))
    has_answer = [position not in missing for position in range(len(pairs))]
    return _make_batch(kind, rows, records, _token_array(prompt_ids), has_answer)


def _make_batch(kind: RowKind, *columns: Sequence[Any] | pa.Array) -> pa.RecordBatch:
    schema = SCHEMAS[kind]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, column_type)
        for column, column_type in zip(columns, schema.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _token_array(column: Sequence[list[int]]) -> pa.ListArray:
    """Return lists of tokens as Arrow's; `pa.array` takes three times as long."""
    offsets = np.cumsum([0, *map(len, column)], dtype=np.int32)
    values = np.fromiter(chain.from_iterable(column), dtype=np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(offsets, values)


def _label_array(ids: pa.ListArray, loss_starts: Sequence[int]) -> pa.ListArray:
    """Return the tokens from each `loss_start` on, and IGNORE_INDEX for those before it."""
    offsets, labels = ids.offsets.to_numpy(), ids.values.to_numpy().copy()
    ends_of_prompts: npt.NDArray[np.int32] = np.repeat(
        offsets[:-1] + np.asarray(loss_starts, np.int32), np.diff(offsets)
    )
    labels[np.arange(len(labels)) < ends_of_prompts] = IGNORE_INDEX
    return pa.ListArray.from_arrays(ids.offsets, labels)
