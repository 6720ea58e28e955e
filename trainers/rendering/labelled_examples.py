"""The tokenized completions of a KTO run, each with its label."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import TrainingData
from trainers.data.faults import quote_value
from trainers.data.formats import RowFormat, detect_format
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.omissions.search import find_omissions
from trainers.rendering.render import (
    IGNORE_INDEX,
    Example,
    PromptCompletion,
    dataset_path,
    parse_preference,
    parse_prompt_completions,
    read_rows,
    render_example,
)
from trainers.runtime.errors import DatasetInvalid


@dataclass(frozen=True)
class LabelledSet:
    """The examples of all rows, each with its label; one without loss tokens is not trained."""

    labelled: list[tuple[Example, bool]]
    omissions: OmissionCounts

    @cached_property
    def records(self) -> list[dict[str, list[int] | bool]]:
        """The trained examples as `prompt_ids`, `completion_ids` and `label`, TRL's names."""
        return [_to_record(example, label) for example, label in self.labelled if example.loss_tokens]

    @property
    def examples(self) -> list[Example]:
        return [example for example, _ in self.labelled]

    @property
    def rows(self) -> int:
        return len(self.labelled)

    @property
    def desirable(self) -> int:
        """The number of trained examples with the label true."""
        return sum(bool(record["label"]) for record in self.records)

    @property
    def truncated(self) -> int:
        return sum(example.truncated for example in self.examples)

    @property
    def dropped(self) -> int:
        return self.rows - len(self.records)

    @property
    def tokens(self) -> int:
        """The tokens of one epoch."""
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """Return the tokens of each trained example."""
        return [len(example.input_ids) for example in self.examples if example.loss_tokens]

    def summary(self) -> str:
        bad = len(self.records) - self.desirable
        return f"{self.desirable} good and {bad} bad completions, {self.truncated} truncated"


def load_labelled(
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> LabelledSet:
    """Render the rows; raises DatasetFileNotFound, or DatasetInvalid if no row can be trained."""
    labelled = render_labelled(dataset, tokenizer, max_length, max_rows)
    if not labelled.labelled:
        raise DatasetInvalid(f"The dataset {dataset} is empty.", "Add rows.")
    if not labelled.records:
        raise DatasetInvalid(
            f"No row of {dataset} can be trained on: every prompt fills max_length {max_length}.",
            "Raise max_length, or shorten the prompts.",
        )
    return labelled


def render_labelled(
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> LabelledSet:
    """Render the rows, even if none can be trained; raises DatasetFileNotFound or DatasetInvalid."""
    labelled: list[tuple[Example, bool]] = []
    omissions = OmissionCounts()
    for row in islice(read_labelled(dataset), max_rows):
        pairs = [pair for pair, _ in row]
        examples = [render_example(pair, tokenizer, max_length) for pair in pairs]
        omissions.add(pairs[0].row, find_omissions(pairs, [example.text for example in examples]))
        labelled += zip(examples, (label for _, label in row), strict=True)
    return LabelledSet(labelled, omissions)


def read_labelled(dataset: TrainingData) -> Iterator[list[tuple[PromptCompletion, bool]]]:
    """Yield the last completion of each row with its label, or both completions of a preference pair.

    Raises DatasetFileNotFound, or DatasetInvalid with the row.
    """
    path = dataset_path(dataset)
    for number, row in read_rows(path):
        if detect_format(row) is RowFormat.preference:
            chosen, rejected = parse_preference(number, row, path)
            yield [(chosen, True), (rejected, False)]
            continue
        label = row.get("label")
        if not isinstance(label, bool):
            found = f"is {quote_value(label)}" if "label" in row else "is missing"
            raise DatasetInvalid(
                f"Row {number} of {path} needs a `label` that is true or false, but it {found}.",
                "Label each completion as good (true) or bad (false), or use pairs: `chosen` and `rejected`.",
            )
        pair = parse_prompt_completions(number, row, path)[-1]
        if pair.is_document:
            raise DatasetInvalid(
                f"Row {number} of {path} is a `text` without a prompt, which KTO cannot read.",
                "Use `prompt`, `completion` and `label`.",
            )
        yield [(pair, label)]


def _to_record(example: Example, label: bool) -> dict[str, list[int] | bool]:
    start = example.labels.count(IGNORE_INDEX)
    return {
        "prompt_ids": example.input_ids[:start],
        "completion_ids": example.input_ids[start:],
        "label": label,
    }
