"""Lines of a dataset, rendered as a batch of Arrow columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from trainers.data.faults import Fault
from trainers.data.files.json_line import RowParser
from trainers.data.formats import Row
from trainers.rendering.cache.columns import completion_batch, labelled_batch, pair_batch, prompt_batch
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
from trainers.runtime.errors import DatasetInvalid, ProgramError

Line = tuple[int, bytes | Fault]
"""The number of a line, from 1, and its text; or the fault of a line that is too long."""


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
            case RowKind.prompts | RowKind.graded:
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
            columns = prompt_batch(self._kind, flat, [ids for _, ids in prompts])
            return RenderedBatch(columns, len(pairs), omissions)
        pieces = self._renderer.examples(flat)
        # A document is rendered as it is.
        texts = iter(
            pair.completion_text if pair.is_document else of_pair[0].text
            for pair, of_pair in zip(flat, pieces, strict=True)
        )
        for of_row in pairs:
            omissions.add(of_row[0].row, find_omissions(of_row, list(islice(texts, len(of_row)))))
        has_documents = any(pair.is_document for pair in flat)
        return RenderedBatch(self._make_columns(pairs, pieces), len(pairs), omissions, has_documents)

    def _make_columns(
        self, pairs: Sequence[Sequence[PromptCompletion]], pieces: Sequence[Sequence[Example]]
    ) -> pa.RecordBatch:
        examples = list(chain.from_iterable(pieces))
        match self._kind:
            case RowKind.pairs:
                return pair_batch(list(zip(examples[::2], examples[1::2], strict=True)))
            case RowKind.labelled:
                return labelled_batch(examples, [label for row in pairs for label in completion_labels(row)])
        return completion_batch(examples)


def _without_tools(pair: PromptCompletion, dataset: Path) -> PromptCompletion:
    if pair.tools:
        raise DatasetInvalid(
            f"Row {pair.row} of {dataset} has tools, which TRL's sampling does not render.",
            "Remove the row, or train on it with SFT.",
        )
    return pair
