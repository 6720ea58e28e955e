"""The tokenized completions of a KTO run, each with its label."""

from collections.abc import Iterator, Sequence
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

RECORD = ("prompt_ids", "completion_ids", "label")
"""TRL's names of a completion."""


class LabelledSet:
    """The examples of all rows, each with its label, which stay in a file.

    An example without loss tokens is not trained.
    """

    def __init__(self, mapped: MappedRows) -> None:
        self.mapped = mapped

    @property
    def labelled(self) -> MappedSequence[tuple[Example, bool]]:
        """All examples with their labels, in the order of their rows."""
        return MappedSequence(self.mapped.table, lambda values: (_make_example(values), values["label"]))

    @property
    def examples(self) -> MappedSequence[Example]:
        """All examples."""
        return MappedSequence(self.mapped.table, _make_example)

    @cached_property
    def trained(self) -> npt.NDArray[np.bool_]:
        """For each of `examples`, whether it is trained."""
        return self.mapped.lengths("completion_ids") > 0

    @property
    def records(self) -> Iterator[dict[str, Any]]:
        """The trained examples by TRL's names."""
        rows = MappedSequence(self.mapped.table.select(RECORD), dict[str, Any])
        return (row for row in rows if row["completion_ids"])

    @property
    def count(self) -> int:
        """The number of examples that are trained."""
        return int(self.trained.sum())

    @cached_property
    def desirable(self) -> int:
        """The number of trained examples with the label true."""
        return int((self.mapped.column("label") & self.trained).sum())

    @property
    def omissions(self) -> OmissionCounts:
        """What the template leaves out of the rows."""
        return self.mapped.omissions

    @property
    def rows(self) -> int:
        """The number of examples: a pair counts twice."""
        return len(self.trained)

    @cached_property
    def truncated(self) -> int:
        ids = self.mapped.lengths("prompt_ids") + self.mapped.lengths("completion_ids")
        return int((self.mapped.column("length") > ids).sum())

    @property
    def dropped(self) -> int:
        return self.rows - self.count

    @cached_property
    def tokens(self) -> int:
        """The tokens of one epoch."""
        return int(self.lengths.sum(dtype=np.int64))

    @cached_property
    def lengths(self) -> Int32s:
        """The tokens of each trained example."""
        lengths: Int32s = self.mapped.lengths("prompt_ids") + self.mapped.lengths("completion_ids")
        return lengths[self.trained]

    def summary(self) -> str:
        bad = self.count - self.desirable
        return f"{self.desirable} good and {bad} bad completions, {self.truncated} truncated"


def load_labelled(
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
    cache: RowCache | None = None,
) -> LabelledSet:
    """Render the rows; raises DatasetFileNotFound, or DatasetInvalid if no row can be trained."""
    labelled = render_labelled(dataset, tokenizer, max_length, max_rows, cache)
    if not labelled.rows:
        raise DatasetInvalid(f"The dataset {dataset} is empty.", "Add rows.")
    if not labelled.count:
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
    cache: RowCache | None = None,
) -> LabelledSet:
    """Render the rows, even if none can be trained; raises DatasetFileNotFound or DatasetInvalid."""
    return LabelledSet(open_rows(RowKind.labelled, dataset, tokenizer, max_length, max_rows, cache))


def _make_example(values: dict[str, Any]) -> Example:
    prompt: Sequence[int] = values["prompt_ids"]
    ids = [*prompt, *values["completion_ids"]]
    return Example(
        row=values["row"],
        text=values["text"],
        input_ids=ids,
        loss_start=len(prompt),
        truncated=values["length"] > len(ids),
        prompt_is_prefix=values["prompt_is_prefix"],
        length=values["length"],
    )
