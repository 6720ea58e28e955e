"""The token triples of a DPO run, with the counts that tell whether the data fits the model."""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import StageDataset
from trainers.rendering.render import IGNORE_INDEX, Example, read_preferences, render_example
from trainers.runtime.errors import DatasetInvalid


@dataclass(frozen=True)
class PreferenceSet:
    """The pairs of all rows; one with an answer that has nothing left to learn is not trained."""

    pairs: list[tuple[Example, Example]]

    @cached_property
    def triples(self) -> list[dict[str, list[int]]]:
        """What is trained on: `prompt_ids`, `chosen_ids` and `rejected_ids`, as TRL names them."""
        return [_triple(*pair) for pair in self.pairs if all(example.loss_tokens for example in pair)]

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
    def equal(self) -> list[int]:
        """Rows whose answers are the same tokens and teach nothing."""
        return [chosen.row for chosen, rejected in self.pairs if chosen.input_ids == rejected.input_ids]

    @property
    def tokens(self) -> int:
        """Tokens of one pass: the prompt counts twice, once before each answer."""
        return sum(
            2 * len(triple["prompt_ids"]) + len(triple["chosen_ids"]) + len(triple["rejected_ids"])
            for triple in self.triples
        )

    def lengths(self) -> list[int]:
        """Tokens of each pair's longer side, to which both sides are padded in a micro-batch."""
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
    """Render all rows, or the first; raises DatasetNotFound, or DatasetInvalid if no pair is left."""
    preferences = render_preferences(dataset, tokenizer, max_length, max_rows)
    if not preferences.triples:
        raise DatasetInvalid(
            f"No row of {dataset} has a pair to learn from: "
            + (f"every prompt fills max_length {max_length}." if preferences.pairs else "the file is empty."),
            "Raise max_length, or shorten the prompts." if preferences.pairs else "Add rows.",
        )
    return preferences


def render_preferences(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> PreferenceSet:
    """Render all rows, or the first; raises DatasetNotFound, or DatasetInvalid for a row that is no pair."""
    return PreferenceSet(
        [
            (render_example(chosen, tokenizer, max_length), render_example(rejected, tokenizer, max_length))
            for chosen, rejected in islice(read_preferences(dataset), max_rows)
        ]
    )


def _triple(chosen: Example, rejected: Example) -> dict[str, list[int]]:
    """Both answers start at the same token, the earlier one where a template renders the prompt unalike."""
    start = min(example.labels.count(IGNORE_INDEX) for example in (chosen, rejected))
    return {
        "prompt_ids": chosen.input_ids[:start],
        "chosen_ids": chosen.input_ids[start:],
        "rejected_ids": rejected.input_ids[start:],
    }
