"""Dataset rows as token ids and labels; every program that renders rows uses these functions.

A completion starts at the first token in which the rendered prompt (with the generation prompt) and the
rendered conversation differ. The tokens before it carry no loss.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from trainers.data.conversation import (
    extract_prompt_and_completion,
    offered_tools,
    preference_messages,
    prompt_completions,
)
from trainers.data.files.jsonl import iter_rows
from trainers.data.formats import Row, RowFormat, detect_format
from trainers.rendering.plain_text import TemplateMissing, render_plain
from trainers.rendering.template_program import try_argument_forms
from trainers.runtime.errors import ConfigInvalid, DatasetFileNotFound, DatasetInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainers.configs.base import TrainingData

IGNORE_INDEX = -100  # torch's cross entropy ignores tokens with this label.

# Tokenizing takes seconds and 200 MiB for each million characters. A longer conversation is refused, unless
# max_length is so large that it could keep most of it: text has 1 to 6 characters per token.
MAX_CHARACTERS = 2**20
MAX_CHARACTERS_PER_TOKEN = 16


class RowTooLong(DatasetInvalid):
    """A conversation is much longer than what a model can read of it."""

    def __init__(self, row: int, characters: int, limit: int) -> None:
        super().__init__(
            f"Row {row} has {characters:,} characters; with this max_length, a row may have {limit:,}.",
            "Split the row, drop long rows with a length filter of a prepare stage, or raise max_length.",
        )
        self.min_tokens = -(-characters // MAX_CHARACTERS_PER_TOKEN)


class Example(NamedTuple):
    """One assistant turn of a row, as tokens.

    `row` is a line number from 1, `text` the output of the template, and `length` the number of tokens before
    truncation. The tokens from `loss_start` on carry loss. `ends` is false for a piece of a document that
    another piece follows.
    """

    row: int
    text: str
    input_ids: list[int]
    loss_start: int
    truncated: bool
    prompt_is_prefix: bool
    length: int
    ends: bool = True

    @property
    def labels(self) -> list[int]:
        """The tokens that carry loss, and IGNORE_INDEX for each of those before them."""
        return [IGNORE_INDEX] * self.loss_start + self.input_ids[self.loss_start :]

    @property
    def loss_tokens(self) -> int:
        return len(self.input_ids) - self.loss_start


@dataclass(frozen=True)
class PromptCompletion:
    """The messages of a prompt and of the assistant's turn that follows it, and their row."""

    row: int
    prompt: list[dict[str, Any]]
    completion: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    source: Row = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_document(self) -> bool:
        """Whether the row is a text without a prompt, which no template renders."""
        return not self.prompt

    @property
    def is_text(self) -> bool:
        """Whether the prompt is a single text, which needs no chat template."""
        return not self.tools and len(self.prompt) == 1 and isinstance(self.source.get("prompt"), str)

    @property
    def completion_text(self) -> str:
        return "".join(message["content"] for message in self.completion)


def dataset_path(reference: "TrainingData") -> Path:
    """Return the file of a dataset; raises ConfigInvalid for a reference to another stage."""
    # All configs take half a second, which the program that renders a large dataset need not spend.
    from trainers.configs.base import StageDataset

    if isinstance(reference, StageDataset):
        raise ConfigInvalid(
            f"The dataset refers to the stage {reference.stage!r}, which only a job can resolve.",
            "Without a job, use the path of the file that the stage wrote.",
        )
    # A program writes the rows of a mixture to one file before anything reads them.
    assert isinstance(reference, str), "the mixture has been replaced by its file"
    return Path(reference)


def read_prompt_completions(
    dataset: "TrainingData", max_rows: int | None = None, *, has_documents: bool = False
) -> Iterator[list[PromptCompletion]]:
    """Yield the assistant turns of each row; a document is a completion without a prompt.

    Raises DatasetFileNotFound, or DatasetInvalid with the row: also for a document, unless `has_documents`.
    """
    path = dataset_path(dataset)
    for number, row in islice(read_rows(path), max_rows):
        check_label(number, row, path)
        pairs = parse_prompt_completions(number, row, path)
        if pairs[0].is_document and not has_documents:
            raise document_refused(number, path)
        yield pairs


def read_turns(dataset: Path, max_rows: int) -> Iterator[Sequence[PromptCompletion]]:
    """Yield the assistant turns of each row, or its chosen and its rejected completion, whatever its format.

    Raises DatasetFileNotFound, or DatasetInvalid with the row.
    """
    for number, row in islice(read_rows(dataset), max_rows):
        is_pair = detect_format(row) is RowFormat.preference
        yield (parse_preference if is_pair else parse_prompt_completions)(number, row, dataset)


def read_prompts(dataset: "TrainingData", max_rows: int | None = None) -> Iterator[PromptCompletion]:
    """Yield the last prompt of each row in any format; the completion may be missing.

    Raises DatasetFileNotFound, or DatasetInvalid with the row.
    """
    path = dataset_path(dataset)
    for number, row in islice(read_rows(path), max_rows):
        yield parse_prompt(number, row, path)


def read_preferences(
    dataset: "TrainingData", max_rows: int | None = None
) -> Iterator[tuple[PromptCompletion, PromptCompletion]]:
    """Yield the chosen and the rejected completion of each row.

    Raises DatasetFileNotFound, or DatasetInvalid with the row.
    """
    path = dataset_path(dataset)
    for number, row in islice(read_rows(path), max_rows):
        yield parse_preference(number, row, path)


def render_example(pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Example:
    """Return tokens and labels, truncated to `max_length`.

    Raises RowTooLong, or DatasetInvalid if the template fails.
    """
    conversation = [*pair.prompt, *pair.completion]
    check_size(pair.row, conversation, max_length)
    try:
        prompt = _render(pair, tokenizer, pair.prompt, is_prompt=True)
        text = _render(pair, tokenizer, conversation)
        prompt_ids, ids = _encode(tokenizer, prompt), _encode(tokenizer, text)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise template_rejects(pair.row, error) from error
    start = common_prefix_length(prompt_ids, ids)
    return Example(
        row=pair.row,
        text=text,
        input_ids=ids[:max_length],
        loss_start=min(start, max_length),
        truncated=len(ids) > max_length,
        prompt_is_prefix=start == len(prompt_ids),
        length=len(ids),
    )


def render_document(
    pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[Example]:
    """Return a document with its end, in pieces of nearly equal length if it is longer than `max_length`.

    Nothing is cut off, and every token carries loss.
    """
    whole = render_example(pair, tokenizer, sys.maxsize)
    return split_document(whole, max_length, tokenizer.decode)


def split_document(whole: Example, max_length: int, decode: Callable[[list[int]], str]) -> list[Example]:
    """Return the pieces of a document, every token of which carries loss."""
    count = max(1, -(-whole.length // max_length))
    bounds = [whole.length * piece // count for piece in range(count + 1)]
    return [
        whole._replace(
            text=whole.text if count == 1 else decode(whole.input_ids[start:end]),
            input_ids=whole.input_ids[start:end],
            loss_start=0,
            length=end - start,
            ends=end == whole.length,
        )
        for start, end in pairwise(bounds)
    ]


def tokenize_prompt(pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens of the prompt, with the generation prompt; raises RowTooLong."""
    return _encode(tokenizer, render_prompt_text(pair, tokenizer))


def render_prompt_text(pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of the prompt, with the generation prompt; raises RowTooLong."""
    check_size(pair.row, pair.prompt)
    return _render(pair, tokenizer, pair.prompt, is_prompt=True)


def render_prompt(pair: PromptCompletion, tokenizer: "PreTrainedTokenizerBase") -> Example:
    """Return the prompt as an example without loss."""
    ids = tokenize_prompt(pair, tokenizer)
    return Example(
        row=pair.row,
        text=tokenizer.decode(ids),
        input_ids=ids,
        loss_start=len(ids),
        truncated=False,
        prompt_is_prefix=True,
        length=len(ids),
    )


def common_prefix_length(left: list[int], right: list[int]) -> int:
    """Return the number of leading tokens that are equal."""
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file with their line numbers; raises DatasetFileNotFound or DatasetInvalid."""
    require_file(path)
    try:
        yield from iter_rows(path)
    except ValueError as error:
        raise unreadable(error) from error


def require_file(path: Path) -> None:
    """Raise DatasetFileNotFound if there is no such file."""
    if not path.is_file():
        raise DatasetFileNotFound(f"The dataset {path} does not exist.", "Use the path of a JSONL file.")


def unreadable(reason: object) -> DatasetInvalid:
    """Return the error of a file that is not JSONL."""
    return DatasetInvalid(f"The dataset cannot be read: {reason}", "Correct the named line.")


def parse_prompt_completions(number: int, row: dict[str, Any], dataset: Path) -> list[PromptCompletion]:
    """Return one item for each trained assistant turn of a row; raises DatasetInvalid."""
    row_format = detect_format(row)
    if row_format is None:
        raise DatasetInvalid(
            f"Row {number} of {dataset} has no known format; its fields are {_field_names(row)}.",
            "Use `messages`, or `prompt` and `completion`, or `question` and `answer`.",
        )
    try:
        offered = offered_tools(row)
        return [
            PromptCompletion(number, prompt, completion, offered, row)
            for prompt, completion in prompt_completions(row, row_format)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetInvalid(
            f"Row {number} of {dataset} is not a valid {row_format} row: {error}",
            "Validate the dataset to list every fault with its row.",
        ) from error


def parse_prompt(number: int, row: dict[str, Any], dataset: Path) -> PromptCompletion:
    """Return the last prompt of a row in any format, and its completion if it has one.

    Raises DatasetInvalid.
    """
    try:
        return PromptCompletion(number, *extract_prompt_and_completion(row), offered_tools(row), row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetInvalid(
            f"Row {number} of {dataset} has no prompt: {error}",
            "Add `prompt`, `messages`, `question` or the fields of another dataset format.",
        ) from error


def parse_preference(
    number: int, row: dict[str, Any], dataset: Path
) -> tuple[PromptCompletion, PromptCompletion]:
    """Return the chosen and the rejected completion of a row; raises DatasetInvalid."""
    if detect_format(row) is not RowFormat.preference:
        raise DatasetInvalid(
            f"Row {number} of {dataset} is not a preference pair; its fields are {_field_names(row)}.",
            "Use `prompt`, `chosen` and `rejected`, or train on rows with one completion with SFT.",
        )
    try:
        prompt, chosen, rejected = preference_messages(row)
        offered = offered_tools(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetInvalid(
            f"Row {number} of {dataset} is not a valid preference pair: {error}",
            "Validate the dataset to list every fault with its row.",
        ) from error
    return (
        PromptCompletion(number, prompt, chosen, offered, row),
        PromptCompletion(number, prompt, rejected, offered, row),
    )


def check_label(number: int, row: dict[str, Any], dataset: Path) -> None:
    """Raise DatasetInvalid for a row that is labelled as an example of what not to write."""
    if row.get("label") is False:
        raise DatasetInvalid(
            f"Row {number} of {dataset} has `label: false`: it shows a completion that must not be learned.",
            "Train on labelled rows with the stage `kto`, or remove the rows whose `label` is false.",
        )


def document_refused(row: int, dataset: Path) -> DatasetInvalid:
    """Return the error of a document for a stage that needs prompts."""
    return DatasetInvalid(
        f"Row {row} of {dataset} is a `text` without a prompt, on which only SFT can train.",
        "Use rows with a prompt, such as `prompt` and `completion`.",
    )


def template_rejects(row: int, reason: object) -> DatasetInvalid:
    """Return the error of a row that the model's template cannot render."""
    return DatasetInvalid(
        f"The model's chat template cannot render row {row}: {reason}",
        "Change the row to roles and turns that the template accepts, or choose another `template` or model.",
    )


def require_text(pair: PromptCompletion) -> None:
    """Raise TemplateMissing for a row that is a conversation, rather than texts that follow each other.

    Only the author of a `prompt` writes what separates it from its completion.
    """
    if pair.source and not pair.is_document and not isinstance(pair.source.get("prompt"), str):
        raise TemplateMissing(pair.row, "is a conversation rather than a `prompt` text")


def check_size(row: int, messages: list[dict[str, Any]], max_length: int = 0) -> None:
    """Raise RowTooLong for a conversation that would take too long to tokenize."""
    characters = sum(
        len(value) if isinstance(value, str) else _count_characters(value)
        for message in messages
        for value in message.values()
    )
    limit = max(MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN * max_length)
    if characters > limit:
        raise RowTooLong(row, characters, limit)


def _count_characters(value: Any) -> int:
    """Count the characters of the strings in a message, also in nested parts and tool calls."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_count_characters, value.values()))
    return sum(map(_count_characters, value)) if isinstance(value, list) else 0


def _field_names(row: dict[str, Any]) -> str:
    return ", ".join(row) or "none"


def _render(
    pair: PromptCompletion,
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    *,
    is_prompt: bool = False,
) -> str:
    if pair.is_document or tokenizer.chat_template is None:
        require_text(pair)
        return render_plain(tokenizer, pair.row, messages, pair.tools, is_prompt=is_prompt)

    def render(messages: list[dict[str, Any]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tools=pair.tools, tokenize=False, add_generation_prompt=is_prompt
            )
        )

    return try_argument_forms(render, messages)


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
