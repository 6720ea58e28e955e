"""Rows with a completion and its label, or with a pair, as the completions of a KTO run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.faults import quote_value
from trainers.data.formats import RowFormat, detect_format
from trainers.rendering.render import (
    PromptCompletion,
    dataset_path,
    parse_preference,
    parse_prompt_completions,
    read_rows,
)
from trainers.runtime.errors import DatasetInvalid

if TYPE_CHECKING:
    from trainers.configs.base import TrainingData


def read_labelled(dataset: "TrainingData") -> Iterator[list[tuple[PromptCompletion, bool]]]:
    """Yield the last completion of each row with its label, or both completions of a preference pair.

    Raises DatasetFileNotFound, or DatasetInvalid with the row.
    """
    path = dataset_path(dataset)
    for number, row in read_rows(path):
        pairs = parse_labelled(number, row, path)
        yield list(zip(pairs, completion_labels(pairs), strict=True))


def parse_labelled(number: int, row: dict[str, Any], dataset: Path) -> Sequence[PromptCompletion]:
    """Return the last completion of a labelled row, or both completions of a pair; raises DatasetInvalid."""
    if detect_format(row) is RowFormat.preference:
        return parse_preference(number, row, dataset)
    label = row.get("label")
    if not isinstance(label, bool):
        found = f"is {quote_value(label)}" if "label" in row else "is missing"
        raise DatasetInvalid(
            f"Row {number} of {dataset} needs a `label` that is true or false, but it {found}.",
            "Label each completion as good (true) or bad (false), or use pairs: `chosen` and `rejected`.",
        )
    pair = parse_prompt_completions(number, row, dataset)[-1]
    if pair.is_document:
        raise DatasetInvalid(
            f"Row {number} of {dataset} is a `text` without a prompt, which KTO cannot read.",
            "Use `prompt`, `completion` and `label`.",
        )
    return [pair]


def completion_labels(pairs: Sequence[PromptCompletion]) -> list[bool]:
    """Return whether each completion of `parse_labelled` is good: of a pair, the first is."""
    return [True, False] if len(pairs) == 2 else [bool(pair.source["label"]) for pair in pairs]
