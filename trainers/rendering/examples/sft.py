"""The examples of an SFT run, with counts that show how the data fits the model."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from trainers.configs.base import TrainingData
from trainers.rendering.cache.folder import RowCache
from trainers.rendering.cache.mapped import Int32s, MappedRows, MappedSequence
from trainers.rendering.cache.open_rows import open_rows
from trainers.rendering.cache.spec import RowKind
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.render import Example
from trainers.runtime.errors import DatasetInvalid


class ExampleSet:
    """The assistant turns of all rows, which stay in a file.

    A turn whose prompt fills the length has no loss tokens: it is in `rendered`, but is not trained.
    """

    def __init__(self, mapped: MappedRows) -> None:
        self.mapped = mapped

    @property
    def rendered(self) -> MappedSequence[Example]:
        """All examples, in the order of their rows."""
        # The labels follow from their number.
        return MappedSequence(self.mapped.table.drop_columns("labels"), _make_example)

    @cached_property
    def trained(self) -> npt.NDArray[np.bool_]:
        """For each of `rendered`, whether it is trained."""
        return self.mapped.column("loss_tokens") > 0

    @property
    def examples(self) -> list[Example]:
        """The examples that are trained."""
        return [example for example in self.rendered if example.loss_tokens]

    @property
    def count(self) -> int:
        """The number of examples that are trained."""
        return int(self.trained.sum())

    @property
    def lengths(self) -> Int32s:
        """The tokens of each example that is trained."""
        return self.mapped.lengths("input_ids")[self.trained]

    @property
    def has_documents(self) -> bool:
        """Whether a row is a text without a prompt."""
        return bool(self.mapped.meta["has_documents"])

    @property
    def omissions(self) -> OmissionCounts:
        """What the template leaves out of the rows."""
        return self.mapped.omissions

    @property
    def rows(self) -> int:
        return self.mapped.rows

    @cached_property
    def truncated(self) -> int:
        """The number of rows with a truncated turn."""
        is_truncated = self.mapped.column("length") > self.mapped.lengths("input_ids")
        return len(np.unique(self.mapped.column("row")[is_truncated]))

    @cached_property
    def dropped(self) -> int:
        """The number of rows without a trained turn."""
        return self.rows - len(np.unique(self.mapped.column("row")[self.trained]))

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @cached_property
    def loss_tokens(self) -> int:
        return int(self.mapped.column("loss_tokens").sum(dtype=np.int64))

    def counts(self) -> dict[str, int]:
        """Return the counts that a plan shows, by name."""
        return {
            "rows": self.rows,
            "examples": self.count,
            "truncated": self.truncated,
            "dropped": self.dropped,
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
        }

    def summary(self) -> str:
        return (
            f"{self.rows} rows in {self.count} examples, {self.truncated} truncated, "
            f"{self.loss_tokens} loss tokens of {self.tokens}"
        )


def load_examples(
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
    cache: RowCache | None = None,
) -> ExampleSet:
    """Render the rows; raises DatasetFileNotFound, or DatasetInvalid if no token carries loss."""
    examples = render_examples(dataset, tokenizer, max_length, max_rows, cache)
    if not examples.rows:
        raise DatasetInvalid(f"The dataset {dataset} is empty.", "Add rows.")
    if not examples.count:
        raise DatasetInvalid(
            f"No row of {dataset} has a token to train on: every prompt fills max_length {max_length}.",
            "Raise max_length, or shorten the prompts.",
        )
    return examples


def render_examples(
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
    cache: RowCache | None = None,
) -> ExampleSet:
    """Render the rows, even if none can be trained; raises DatasetFileNotFound or DatasetInvalid."""
    return ExampleSet(open_rows(RowKind.completions, dataset, tokenizer, max_length, max_rows, cache))


def _make_example(values: dict[str, Any]) -> Example:
    ids = values["input_ids"]
    return Example(
        row=values["row"],
        text=values["text"],
        input_ids=ids,
        loss_start=len(ids) - values["loss_tokens"],
        truncated=values["length"] > len(ids),
        prompt_is_prefix=values["prompt_is_prefix"],
        length=values["length"],
        ends=values["ends"],
    )
