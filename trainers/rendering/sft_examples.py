"""The examples of a training run, with the counts that tell whether the data fits the model."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import StageDataset
from trainers.rendering.render import Example, read_prompt_completions, render_example
from trainers.runtime.errors import DatasetInvalid


@dataclass(frozen=True)
class ExampleSet:
    """The turns of all rows; those whose prompt alone fills the length carry no loss and are not trained."""

    every: list[Example]
    rows: int

    @property
    def examples(self) -> list[Example]:
        """What is trained on."""
        return [example for example in self.every if example.loss_tokens]

    @property
    def truncated(self) -> int:
        """Rows of which something is cut off."""
        return len({example.row for example in self.every if example.truncated})

    @property
    def dropped(self) -> int:
        """Rows of which nothing is trained."""
        return self.rows - len({example.row for example in self.every if example.loss_tokens})

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def loss_tokens(self) -> int:
        return sum(example.loss_tokens for example in self.every)

    def summary(self) -> str:
        return (
            f"{self.rows} rows in {len(self.examples)} examples, {self.truncated} truncated, "
            f"{self.loss_tokens} loss tokens of {self.tokens}"
        )


def load_examples(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> ExampleSet:
    """Render all rows, or the first; raises DatasetNotFound, or DatasetInvalid if no token carries loss."""
    examples = render_examples(dataset, tokenizer, max_length, max_rows)
    if not examples.examples:
        raise DatasetInvalid(
            f"No row of {dataset} has a token to learn: "
            + (f"every prompt fills max_length {max_length}." if examples.every else "the file is empty."),
            "Raise max_length, or shorten the prompts." if examples.every else "Add rows.",
        )
    return examples


def render_examples(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> ExampleSet:
    """Render all rows, or the first, whatever comes of it; raises DatasetNotFound or DatasetInvalid."""
    per_row = [
        [render_example(pair, tokenizer, max_length) for pair in pairs]
        for pairs in read_prompt_completions(dataset, max_rows)
    ]
    return ExampleSet([example for row in per_row for example in row], rows=len(per_row))
