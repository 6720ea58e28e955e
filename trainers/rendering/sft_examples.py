"""The examples of an SFT run, with counts that show how the data fits the model."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import StageDataset
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.omissions.search import find_omissions
from trainers.rendering.render import (
    Example,
    read_prompt_completions,
    render_document,
    render_example,
)
from trainers.runtime.errors import DatasetInvalid


@dataclass(frozen=True)
class ExampleSet:
    """The assistant turns of all rows.

    A turn whose prompt fills the length has no loss tokens: it is in `rendered`, but is not trained.
    """

    rendered: list[Example]
    rows: int
    omissions: OmissionCounts
    has_documents: bool = False

    @property
    def examples(self) -> list[Example]:
        """The examples that are trained."""
        return [example for example in self.rendered if example.loss_tokens]

    @property
    def truncated(self) -> int:
        """The number of rows with a truncated turn."""
        return len({example.row for example in self.rendered if example.truncated})

    @property
    def dropped(self) -> int:
        """The number of rows without a trained turn."""
        return self.rows - len({example.row for example in self.rendered if example.loss_tokens})

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def loss_tokens(self) -> int:
        return sum(example.loss_tokens for example in self.rendered)

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
    """Render the rows; raises DatasetFileNotFound, or DatasetInvalid if no token carries loss."""
    examples = render_examples(dataset, tokenizer, max_length, max_rows)
    if not examples.rendered:
        raise DatasetInvalid(f"The dataset {dataset} is empty.", "Add rows.")
    if not examples.examples:
        raise DatasetInvalid(
            f"No row of {dataset} has a token to train on: every prompt fills max_length {max_length}.",
            "Raise max_length, or shorten the prompts.",
        )
    return examples


def render_examples(
    dataset: str | StageDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_rows: int | None = None,
) -> ExampleSet:
    """Render the rows, even if none can be trained; raises DatasetFileNotFound or DatasetInvalid."""
    rendered: list[Example] = []
    omissions, has_documents = OmissionCounts(), False
    for pairs in read_prompt_completions(dataset, max_rows, has_documents=True):
        if pairs[0].is_document:
            has_documents = True
            examples = render_document(pairs[0], tokenizer, max_length)
            texts = [pairs[0].completion_text]
        else:
            examples = [render_example(pair, tokenizer, max_length) for pair in pairs]
            texts = [example.text for example in examples]
        omissions.add(pairs[0].row, find_omissions(pairs, texts))
        rendered += examples
    return ExampleSet(rendered, omissions.rows, omissions, has_documents)
