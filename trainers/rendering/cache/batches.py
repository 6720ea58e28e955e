"""Lines of a dataset as a batch of Arrow columns."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainers.data.faults import Fault
from trainers.data.files.json_line import RowParser
from trainers.data.formats import Row
from trainers.rendering.cache.spec import RowKind
from trainers.rendering.cache.tokenize import ExampleRenderer
from trainers.rendering.labelled_rows import completion_labels, parse_labelled
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.omissions.search import find_omissions
from trainers.rendering.render import (
    Example,
    PromptCompletion,
    check_label,
    document_refused,
    parse_preference,
    parse_prompt,
    parse_prompt_completions,
    unreadable,
)
from trainers.rewards.score import find_references_without_answer
from trainers.runtime.errors import DatasetInvalid, ProgramError

Line = tuple[int, bytes | Fault]
"""The number of a line, from 1, and its text; or the fault of a line that is too long."""

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
    RowKind.prompts: pa.schema([_ROW, ("record", pa.large_string()), ("prompt_ids", _IDS)]),
}


@dataclass
class RenderedBatch:
    """The columns of some rows, and what the template leaves out of them."""

    columns: pa.RecordBatch
    rows: int
    omissions: OmissionCounts
    has_documents: bool = False


class LineRenderer:
    """Renders lines of one dataset."""

    def __init__(self, kind: RowKind, dataset: Path, renderer: ExampleRenderer) -> None:
        self._kind, self._dataset, self._renderer = kind, dataset, renderer
        self._parser = RowParser()

    def render(self, lines: Sequence[Line]) -> RenderedBatch:
        """Return the rows of the lines; raises the ProgramError of the first invalid row."""
        pairs: list[Sequence[PromptCompletion]] = []
        failure: ProgramError | None = None
        for number, line in lines:
            try:
                row = self._parse(number, line)
                if row is not None:
                    pairs.append(self._read(number, row))
            except ProgramError as error:
                failure = error
                break
        # A row before the invalid one may not be renderable, and is reported first then.
        batch = self._render_rows(pairs)
        if failure is not None:
            raise failure
        return batch

    def _parse(self, number: int, line: bytes | Fault) -> Row | None:
        row = self._parser.parse(line) if isinstance(line, bytes) else line
        if isinstance(row, Fault):
            raise unreadable(f"{self._dataset.name}, line {number}: {row.message}")
        return row

    def _read(self, number: int, row: Row) -> Sequence[PromptCompletion]:
        match self._kind:
            case RowKind.pairs:
                return parse_preference(number, row, self._dataset)
            case RowKind.labelled:
                return parse_labelled(number, row, self._dataset)
            case RowKind.prompts:
                return [_without_tools(parse_prompt(number, row, self._dataset), self._dataset)]
        check_label(number, row, self._dataset)
        turns = parse_prompt_completions(number, row, self._dataset)
        if self._kind is RowKind.completions:
            return turns
        if turns[0].is_document:
            raise document_refused(number, self._dataset)
        return [_without_tools(turns[-1], self._dataset)]

    def _render_rows(self, pairs: Sequence[Sequence[PromptCompletion]]) -> RenderedBatch:
        flat = [pair for of_row in pairs for pair in of_row]
        omissions = OmissionCounts()
        if self._kind.has_prompts_only:
            prompts = self._renderer.prompts(flat)
            for pair, (text, _) in zip(flat, prompts, strict=True):
                omissions.add(pair.row, find_omissions([replace(pair, completion=[])], [text]))
            has_answer = self._kind is RowKind.references
            columns = [
                _prompt_columns(pair, ids, has_answer=has_answer)
                for pair, (_, ids) in zip(flat, prompts, strict=True)
            ]
            return RenderedBatch(self._as_batch(columns), len(pairs), omissions)
        examples = iter(self._renderer.examples(flat))
        per_row = [[next(examples) for _ in of_row] for of_row in pairs]
        for of_row, rendered in zip(pairs, per_row, strict=True):
            # A document is rendered as it is.
            texts = [
                pair.completion_text if pair.is_document else pieces[0].text
                for pair, pieces in zip(of_row, rendered, strict=True)
            ]
            omissions.add(of_row[0].row, find_omissions(of_row, texts))
        if self._kind is RowKind.pairs:
            columns = [_pair_columns(*(pieces[0] for pieces in rendered)) for rendered in per_row]
        elif self._kind is RowKind.labelled:
            columns = [
                _labelled_columns(pieces[0], label)
                for of_row, rendered in zip(pairs, per_row, strict=True)
                for label, pieces in zip(completion_labels(of_row), rendered, strict=True)
            ]
        else:
            examples_of_rows = chain.from_iterable(chain.from_iterable(per_row))
            columns = [_completion_columns(example) for example in examples_of_rows]
        has_documents = any(pair.is_document for pair in flat)
        return RenderedBatch(self._as_batch(columns), len(pairs), omissions, has_documents)

    def _as_batch(self, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        schema = SCHEMAS[self._kind]
        columns = zip(*rows, strict=True) if rows else [()] * len(schema)
        arrays = [
            _token_array(column) if column_type == _IDS else pa.array(column, column_type)
            for column, column_type in zip(columns, schema.types, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _token_array(column: Sequence[list[int]]) -> pa.ListArray:
    """Return lists of tokens as Arrow's; `pa.array` takes three times as long."""
    offsets = np.cumsum([0, *map(len, column)], dtype=np.int32)
    values = np.fromiter(chain.from_iterable(column), dtype=np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(offsets, values)


def _completion_columns(example: Example) -> tuple[Any, ...]:
    return (
        example.row,
        example.text,
        example.input_ids,
        example.labels,
        example.length,
        example.loss_tokens,
        example.prompt_is_prefix,
        example.ends,
    )


def _pair_columns(chosen: Example, rejected: Example) -> tuple[Any, ...]:
    # Both completions must start at the same token. Where a template renders the prompt differently before
    # each of them, the earlier start is used.
    starts = [len(example.labels) - example.loss_tokens for example in (chosen, rejected)]
    start = min(starts)
    return (
        chosen.row,
        chosen.input_ids[:start],
        chosen.input_ids[start:],
        rejected.input_ids[start:],
        chosen.text,
        starts[0],
        chosen.length,
        chosen.prompt_is_prefix,
        rejected.text,
        starts[1],
        rejected.length,
        rejected.prompt_is_prefix,
        bool(chosen.loss_tokens and rejected.loss_tokens),
    )


def _labelled_columns(example: Example, label: bool) -> tuple[Any, ...]:
    start = len(example.labels) - example.loss_tokens
    return (
        example.row,
        example.text,
        example.input_ids[:start],
        example.input_ids[start:],
        label,
        example.length,
        example.prompt_is_prefix,
    )


def _prompt_columns(pair: PromptCompletion, prompt_ids: list[int], *, has_answer: bool) -> tuple[Any, ...]:
    # As JSON text: in an Arrow table every message would have the fields of all other messages.
    record = json.dumps({"prompt": pair.prompt, "reference": pair.completion_text})
    if not has_answer:
        return pair.row, record, prompt_ids
    return pair.row, record, prompt_ids, not find_references_without_answer([pair.completion_text])


def _without_tools(pair: PromptCompletion, dataset: Path) -> PromptCompletion:
    if pair.tools:
        raise DatasetInvalid(
            f"Row {pair.row} of {dataset} has tools, which TRL's sampling does not render.",
            "Remove the row, or train on it with SFT.",
        )
    return pair
