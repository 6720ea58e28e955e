"""Rows of a dataset as the tokens that a model is trained on: what `prepare` shows is what `sft` trains.

A completion starts where the tokens of the prompt (with the generation prompt) and of the whole conversation
part. Everything before carries no loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from trainers.configs.base import StageDataset
from trainers.data.conversation import (
    extract_prompt_and_answer,
    offered_tools,
    preference_messages,
    prompt_completions,
)
from trainers.data.files.jsonl import iter_rows
from trainers.data.formats import RowFormat, detect_format
from trainers.runtime.errors import ConfigInvalid, DatasetFileNotFound, DatasetInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # The label that torch's cross entropy leaves out.


@dataclass(frozen=True)
class Example:
    """One assistant turn of a row; `row` is a line number from 1 and `text` what the template rendered."""

    row: int
    text: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool
    prompt_is_prefix: bool
    length: int
    """Tokens before it was cut."""

    @property
    def loss_tokens(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and the assistant's answer to it."""

    row: int
    prompt: list[dict[str, Any]]
    completion: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None

    @property
    def answer(self) -> str:
        return "".join(message["content"] for message in self.completion)


def dataset_path(reference: str | StageDataset) -> Path:
    """The file of a dataset; raises ConfigInvalid for a reference that is not resolved yet."""
    if isinstance(reference, StageDataset):
        raise ConfigInvalid(
            f"The dataset refers to the stage {reference.stage!r}, which only a job can resolve.",
            "By hand, name the file that the stage has made.",
        )
    return Path(reference)


def read_prompt_completions(
    dataset: str | StageDataset, rows: int | None = None
) -> Iterator[list[PromptCompletion]]:
    """The pairs of each of the first rows; raises DatasetNotFound, or DatasetInvalid naming the row."""
    path = dataset_path(dataset)
    for number, row in islice(read_rows(path), rows):
        yield parse_prompt_completions(number, row, path)


def read_prompts(dataset: str | StageDataset, rows: int | None = None) -> Iterator[PromptCompletion]:
    """What each of the first rows asks at its end, in rows of any format and in those without an answer.

    Raises as `read_pairs` does.
    """
    path = dataset_path(dataset)
    for number, row in islice(read_rows(path), rows):
        try:
            yield PromptCompletion(number, *extract_prompt_and_answer(row), offered_tools(row))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetInvalid(
                f"Row {number} of {path} holds nothing to answer: {error}",
                "Give it `prompt`, `messages`, `question` or another format of a dataset.",
            ) from error


def read_preferences(dataset: str | StageDataset) -> Iterator[tuple[PromptCompletion, PromptCompletion]]:
    """The chosen and the rejected pair of each row; raises as `read_pairs` does."""
    path = dataset_path(dataset)
    for number, row in read_rows(path):
        yield _preference(number, row, path)


def render_example(pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Example:
    """Tokens and labels of a pair, cut at `max_length`; raises DatasetInvalid if the template refuses it."""
    try:
        prompt_ids = _tokens(tokenizer, pair.prompt, pair.tools, add_generation_prompt=True)
        conversation = [*pair.prompt, *pair.completion]
        text = tokenizer.apply_chat_template(conversation, tools=pair.tools, tokenize=False)
        ids = _tokens(tokenizer, conversation, pair.tools)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise DatasetInvalid(
            f"The model's chat template cannot render row {pair.row}: {error}",
            "Change the row to the roles and turns that the template accepts, or choose another model.",
        ) from error
    start = common_prefix_length(prompt_ids, ids)
    labels = [IGNORE_INDEX] * start + ids[start:]
    return Example(
        row=pair.row,
        text=text,
        input_ids=ids[:max_length],
        labels=labels[:max_length],
        truncated=len(ids) > max_length,
        prompt_is_prefix=start == len(prompt_ids),
        length=len(ids),
    )


def tokenize_prompt(pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The prompt as the model reads it before it answers."""
    return _tokens(tokenizer, pair.prompt, pair.tools, add_generation_prompt=True)


def render_prompt(pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase") -> Example:
    """The prompt alone, none of which carries loss."""
    ids = tokenize_prompt(pair, tokenizer)
    return Example(
        row=pair.row,
        text=tokenizer.decode(ids),
        input_ids=ids,
        labels=[IGNORE_INDEX] * len(ids),
        truncated=False,
        prompt_is_prefix=True,
        length=len(ids),
    )


def common_prefix_length(left: list[int], right: list[int]) -> int:
    """How many leading tokens agree."""
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their lines; raises DatasetNotFound or DatasetInvalid."""
    if not path.is_file():
        raise DatasetFileNotFound(f"The dataset {path} does not exist.", "Name the path of a JSONL file.")
    try:
        yield from iter_rows(path)
    except ValueError as error:
        raise DatasetInvalid(f"The dataset cannot be read: {error}", "Correct the named line.") from error


def parse_prompt_completions(number: int, row: dict[str, Any], dataset: Path) -> list[PromptCompletion]:
    """The pairs of one row, one for each turn that is trained; raises DatasetInvalid."""
    row_format = detect_format(row)
    if row_format is None:
        raise DatasetInvalid(
            f"Row {number} of {dataset} has no known format; its fields are {', '.join(row) or 'none'}.",
            "Use `messages`, or `prompt` and `completion`, or `question` and `answer`.",
        )
    try:
        offered = offered_tools(row)
        return [
            PromptCompletion(number, prompt, done, offered)
            for prompt, done in prompt_completions(row, row_format)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetInvalid(
            f"Row {number} of {dataset} cannot be used as {row_format} row: {error}",
            "Validate the dataset, which lists every fault with its row.",
        ) from error


def _preference(number: int, row: dict[str, Any], dataset: Path) -> tuple[PromptCompletion, PromptCompletion]:
    if detect_format(row) is not RowFormat.preference:
        raise DatasetInvalid(
            f"Row {number} of {dataset} is no preference pair; its fields are {', '.join(row) or 'none'}.",
            "Use `prompt`, `chosen` and `rejected`, or train on rows with one answer with SFT.",
        )
    try:
        prompt, chosen, rejected = preference_messages(row)
        offered = offered_tools(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetInvalid(
            f"Row {number} of {dataset} cannot be used as preference pair: {error}",
            "Validate the dataset, which lists every fault with its row.",
        ) from error
    return PromptCompletion(number, prompt, chosen, offered), PromptCompletion(
        number, prompt, rejected, offered
    )


def _tokens(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    offered: list[dict[str, Any]] | None,
    add_generation_prompt: bool = False,
) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        messages, tools=offered, tokenize=True, return_dict=True, add_generation_prompt=add_generation_prompt
    )
    return list(encoded["input_ids"])
