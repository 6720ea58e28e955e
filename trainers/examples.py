"""The examples of a training run, with the counts that tell whether the data fits the model."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import StageDataset
from trainers.errors import DatasetInvalid
from trainers.render import Example, read_pairs, render
from trainers.report import Report


@dataclass(frozen=True)
class Examples:
    """What is trained on; examples whose prompt alone fills the length carry no loss and are dropped."""

    examples: list[Example]
    rows: int
    truncated: int
    dropped: int
    not_prefix: int

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def loss_tokens(self) -> int:
        return sum(example.loss_tokens for example in self.examples)

    def summary(self) -> str:
        return (
            f"{self.rows} rows in {len(self.examples)} examples, {self.truncated} truncated, "
            f"{self.loss_tokens} loss tokens of {self.tokens}"
        )

    def warn(self, report: Report, max_length: int) -> None:
        """Report what works but may not be meant."""
        if self.truncated:
            report.warning(
                "rows_truncated",
                f"{self.truncated} of {self.rows} rows are longer than max_length {max_length} tokens and "
                f"lose their end; {self.dropped} of them have no completion left and are left out. "
                "Raise max_length.",
            )
        if self.not_prefix:
            report.warning(
                "prompt_differs",
                f"In {self.not_prefix} of {self.rows} rows the chat template renders the prompt differently "
                "once an answer follows, so the model trains on a context that it will not see when it "
                "answers. Use a template that renders both alike.",
            )


def load_examples(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> Examples:
    """Render all rows, or the first; raises DatasetNotFound, or DatasetInvalid if no token carries loss."""
    rows = read_pairs(dataset, max_rows)
    per_row = [[render(pair, tokenizer, max_length) for pair in pairs] for pairs in rows]
    every = [example for row in per_row for example in row]
    kept = [example for example in every if example.loss_tokens]
    if not kept:
        raise DatasetInvalid(
            f"No row of {dataset} has a token to learn: "
            + (f"every prompt fills max_length {max_length}." if every else "the file is empty."),
            "Raise max_length, or shorten the prompts." if every else "Add rows.",
        )
    return Examples(
        examples=kept,
        rows=len(per_row),
        truncated=sum(any(example.truncated for example in row) for row in per_row),
        dropped=sum(not any(example.loss_tokens for example in row) for row in per_row),
        not_prefix=sum(any(not example.prompt_is_prefix for example in row) for row in per_row),
    )
