"""The tokenized pairs of a DPO run, with counts that show how the data fits the model."""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import StageDataset
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.omissions.search import find_omissions
from trainers.rendering.render import IGNORE_INDEX, Example, read_preferences, render_example
from trainers.runtime.errors import DatasetInvalid


@dataclass(frozen=True)
class PreferenceSet:
    """The chosen and rejected example of each row; a pair with a side without loss tokens is not trained."""

    pairs: list[tuple[Example, Example]]
    omissions: OmissionCounts

    @cached_property
    def triples(self) -> list[dict[str, list[int]]]:
        """The trained pairs as `prompt_ids`, `chosen_ids` and `rejected_ids`, TRL's names."""
        return [_to_triple(*pair) for pair in self.pairs if all(example.loss_tokens for example in pair)]

    @property
    def rows(self) -> int:
        return len(self.pairs)

    @property
    def truncated(self) -> int:
        return sum(any(example.truncated for example in pair) for pair in self.pairs)

    @property
    def dropped(self) -> int:
        return self.rows - len(self.triples)

    @property
    def identical_rows(self) -> list[int]:
        """The rows whose chosen and rejected tokens are equal, from which nothing is learned."""
        return [chosen.row for chosen, rejected in self.pairs if chosen.input_ids == rejected.input_ids]

    @property
    def tokens(self) -> int:
        """The tokens of one epoch; a prompt counts twice, because it precedes both completions."""
        return sum(
            2 * len(triple["prompt_ids"]) + len(triple["chosen_ids"]) + len(triple["rejected_ids"])
            for triple in self.triples
        )

    def lengths(self) -> list[int]:
        """Return the tokens of each pair's longer side, to which both sides are padded in a micro-batch."""
        return [
            len(triple["prompt_ids"]) + max(len(triple["chosen_ids"]), len(triple["rejected_ids"]))
            for triple in self.triples
        ]

    def summary(self) -> str:
        return f"{self.rows} rows in {len(self.triples)} pairs, {self.truncated} truncated"


def load_preferences(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> PreferenceSet:
    """Render the rows; raises DatasetFileNotFound, or DatasetInvalid if no pair can be trained."""
    preferences = render_preferences(dataset, tokenizer, max_length, max_rows)
    if not preferences.pairs:
        raise DatasetInvalid(f"The dataset {dataset} is empty.", "Add rows.")
    if not preferences.triples:
        raise DatasetInvalid(
            f"No row of {dataset} has a pair to train on: every prompt fills max_length {max_length}.",
            "Raise max_length, or shorten the prompts.",
        )
    return preferences


def render_preferences(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> PreferenceSet:
    """Render the rows, even if none can be trained; raises DatasetFileNotFound or DatasetInvalid."""
    pairs: list[tuple[Example, Example]] = []
    omissions = OmissionCounts()
    for both in islice(read_preferences(dataset), max_rows):
        chosen, rejected = (render_example(pair, tokenizer, max_length) for pair in both)
        omissions.add(chosen.row, find_omissions(both, [chosen.text, rejected.text]))
        pairs.append((chosen, rejected))
    return PreferenceSet(pairs, omissions)


def _to_triple(chosen: Example, rejected: Example) -> dict[str, list[int]]:
    # Both completions must start at the same token. Where a template renders the prompt differently before
    # each of them, the earlier start is used.
    start = min(example.labels.count(IGNORE_INDEX) for example in (chosen, rejected))
    return {
        "prompt_ids": chosen.input_ids[:start],
        "chosen_ids": chosen.input_ids[start:],
        "rejected_ids": rejected.input_ids[start:],
    }
