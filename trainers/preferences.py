"""The token triples of a DPO run, with the counts that tell whether the data fits the model."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import StageDataset
from trainers.errors import DatasetInvalid
from trainers.render import IGNORED, Example, read_preferences, render
from trainers.report import Report


@dataclass(frozen=True)
class Preferences:
    """What is trained on; `triples` hold `prompt_ids`, `chosen_ids` and `rejected_ids`, as TRL names them."""

    triples: list[dict[str, Any]]
    rows: int
    truncated: int
    dropped: int
    equal: int

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

    def warn(self, report: Report, max_length: int) -> None:
        """Report what works but may not be meant."""
        if self.truncated:
            report.warning(
                "rows_truncated",
                f"{self.truncated} of {self.rows} rows are longer than max_length {max_length} tokens and "
                f"lose their end; {self.dropped} of them have an answer with nothing left and are left out. "
                "Raise max_length.",
            )
        if self.equal:
            report.warning(
                "answers_equal",
                f"In {self.equal} of {self.rows} rows the chosen and the rejected answer are the same tokens "
                "and teach nothing. Remove these rows, or raise max_length if they differ at their end.",
            )


def load_preferences(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> Preferences:
    """Render all rows, or the first; raises DatasetNotFound, or DatasetInvalid for a row that is no pair."""
    pairs = [
        (render(chosen, tokenizer, max_length), render(rejected, tokenizer, max_length))
        for chosen, rejected in islice(read_preferences(dataset), max_rows)
    ]
    kept = [_triple(*pair) for pair in pairs if all(example.loss_tokens for example in pair)]
    if not kept:
        raise DatasetInvalid(
            f"No row of {dataset} has a pair to learn from: "
            + (f"every prompt fills max_length {max_length}." if pairs else "the file is empty."),
            "Raise max_length, or shorten the prompts." if pairs else "Add rows.",
        )
    return Preferences(
        triples=kept,
        rows=len(pairs),
        truncated=sum(any(example.truncated for example in pair) for pair in pairs),
        dropped=len(pairs) - len(kept),
        equal=sum(triple["chosen_ids"] == triple["rejected_ids"] for triple in kept),
    )


def _triple(chosen: Example, rejected: Example) -> dict[str, list[int]]:
    """Both answers start at the same token, the earlier one where a template renders the prompt unalike."""
    start = min(example.labels.count(IGNORED) for example in (chosen, rejected))
    return {
        "prompt_ids": chosen.input_ids[:start],
        "chosen_ids": chosen.input_ids[start:],
        "rejected_ids": rejected.input_ids[start:],
    }
