"""The tokenized pairs of a DPO run, with counts that show how the data fits the model."""

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

TRIPLE = ("prompt_ids", "chosen_ids", "rejected_ids")
"""TRL's names of the tokens of a pair."""


class PreferenceSet:
    """The chosen and rejected example of each row, which stay in a file.

    A pair with a side without loss tokens is not trained.
    """

    def __init__(self, mapped: MappedRows) -> None:
        self.mapped = mapped

    @property
    def pairs(self) -> MappedSequence[tuple[Example, Example]]:
        """All pairs, in the order of their rows."""
        return MappedSequence(self.mapped.table, _make_pair)

    @property
    def sides(self) -> Sequence[Example]:
        """The examples of all pairs."""
        return _Sides(self.pairs)

    @cached_property
    def trained(self) -> npt.NDArray[np.bool_]:
        """For each of `pairs`, whether it is trained."""
        return self.mapped.column("is_trained")

    @property
    def triples(self) -> list[dict[str, list[int]]]:
        """The trained pairs by TRL's names."""
        table = self.mapped.table.select(TRIPLE)
        return [table.slice(int(index), 1).to_pylist()[0] for index in np.flatnonzero(self.trained)]

    @property
    def count(self) -> int:
        """The number of pairs that are trained."""
        return int(self.trained.sum())

    @property
    def omissions(self) -> OmissionCounts:
        """What the template leaves out of the rows."""
        return self.mapped.omissions

    @property
    def rows(self) -> int:
        return self.mapped.rows

    @cached_property
    def truncated(self) -> int:
        """The number of rows with a truncated side."""
        prompts = self.mapped.lengths("prompt_ids")
        sides = [
            self.mapped.column(f"{side}_length") > prompts + self.mapped.lengths(f"{side}_ids")
            for side in ("chosen", "rejected")
        ]
        return int((sides[0] | sides[1]).sum())

    @property
    def dropped(self) -> int:
        return self.rows - self.count

    @cached_property
    def identical_rows(self) -> list[int]:
        """The rows whose chosen and rejected tokens are equal, from which nothing is learned."""
        return [chosen.row for chosen, rejected in self.pairs if chosen.input_ids == rejected.input_ids]

    @cached_property
    def tokens(self) -> int:
        """The tokens of one epoch; a prompt counts twice, because it precedes both completions."""
        prompts, chosen, rejected = (self.mapped.lengths(name)[self.trained] for name in TRIPLE)
        return int((2 * prompts + chosen + rejected).sum(dtype=np.int64))

    @cached_property
    def lengths(self) -> Int32s:
        """The tokens of each pair's longer side, to which both sides are padded in a micro-batch."""
        prompts, chosen, rejected = (self.mapped.lengths(name)[self.trained] for name in TRIPLE)
        longest: Int32s = prompts + np.maximum(chosen, rejected)
        return longest

    def counts(self) -> dict[str, int]:
        """Return the counts that a plan shows, by name."""
        return {
            "rows": self.rows,
            "pairs": self.count,
            "truncated": self.truncated,
            "dropped": self.dropped,
            "identical": len(self.identical_rows),
            "tokens": self.tokens,
        }

    def summary(self) -> str:
        return f"{self.rows} rows in {self.count} pairs, {self.truncated} truncated"


class _Sides(Sequence[Example]):
    """Pairs as a sequence of twice the length."""

    def __init__(self, pairs: MappedSequence[tuple[Example, Example]]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, int)
        return self._pairs[index // 2][index % 2]

    def __iter__(self) -> Iterator[Example]:
        return (example for pair in self._pairs for example in pair)


def load_preferences(
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
    cache: RowCache | None = None,
) -> PreferenceSet:
    """Render the rows; raises DatasetFileNotFound, or DatasetInvalid if no pair can be trained."""
    preferences = render_preferences(dataset, tokenizer, max_length, max_rows, cache)
    if not preferences.rows:
        raise DatasetInvalid(f"The dataset {dataset} is empty.", "Add rows.")
    if not preferences.count:
        raise DatasetInvalid(
            f"No row of {dataset} has a pair to train on: every prompt fills max_length {max_length}.",
            "Raise max_length, or shorten the prompts.",
        )
    return preferences


def render_preferences(
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
    cache: RowCache | None = None,
) -> PreferenceSet:
    """Render the rows, even if none can be trained; raises DatasetFileNotFound or DatasetInvalid."""
    return PreferenceSet(open_rows(RowKind.pairs, dataset, tokenizer, max_length, max_rows, cache))


def _make_pair(values: dict[str, Any]) -> tuple[Example, Example]:
    return _make_side(values, "chosen"), _make_side(values, "rejected")


def _make_side(values: dict[str, Any], side: str) -> Example:
    ids = values["prompt_ids"] + values[f"{side}_ids"]
    return Example(
        row=values["row"],
        text=values[f"{side}_text"],
        input_ids=ids,
        loss_start=values[f"{side}_start"],
        truncated=values[f"{side}_length"] > len(ids),
        prompt_is_prefix=values[f"{side}_prompt_is_prefix"],
        length=values[f"{side}_length"],
    )
