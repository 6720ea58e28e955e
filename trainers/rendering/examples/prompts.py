"""The prompts of on-policy training, each with its tokens and its reference."""

import json
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from trainers.configs.base import TrainingData
from trainers.rendering.cache.folder import RowCache
from trainers.rendering.cache.mapped import Int32s, MappedRows, MappedSequence
from trainers.rendering.cache.open_rows import open_rows
from trainers.rendering.cache.spec import RowKind
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.plain_text import TemplateMissing
from trainers.rendering.render import PromptCompletion
from trainers.runtime.errors import DatasetInvalid


class PromptSet:
    """The last prompt of each row, with its completion as the reference, which stay in a file."""

    def __init__(self, mapped: MappedRows) -> None:
        self.mapped = mapped

    @property
    def pairs(self) -> MappedSequence[PromptCompletion]:
        """The prompts with their references, in the order of their rows."""
        return MappedSequence(self.mapped.table.select(["row", "record"]), _make_pair)

    @property
    def rows(self) -> int:
        return self.mapped.rows

    @cached_property
    def lengths(self) -> Int32s:
        """The tokens of each prompt, with the generation prompt."""
        return self.mapped.lengths("prompt_ids")

    @property
    def tokens_of_rows(self) -> MappedSequence[tuple[int, list[int]]]:
        """The row of each prompt and its tokens."""
        return MappedSequence(
            self.mapped.table.select(["row", "prompt_ids"]),
            lambda values: (values["row"], values["prompt_ids"]),
        )

    @cached_property
    def without_answer(self) -> list[int]:
        """The positions of references without a final answer, which no completion can equal."""
        found: list[int] = np.flatnonzero(~self.mapped.column("has_answer")).tolist()
        return found

    @property
    def omissions(self) -> OmissionCounts:
        """What the template leaves out of the prompts."""
        return self.mapped.omissions


def render_prompts(
    kind: RowKind,
    dataset: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    cache: RowCache | None = None,
) -> PromptSet:
    """Render the prompts; raises DatasetFileNotFound, DatasetInvalid or TemplateMissing."""
    prompts = PromptSet(open_rows(kind, dataset, tokenizer, max_length=0, cache=cache))
    if not prompts.rows:
        raise DatasetInvalid(f"The dataset {dataset} has no prompts.", "Add rows.")
    if tokenizer.chat_template is None:
        # TRL samples from rendered chats only.
        raise TemplateMissing(prompts.pairs[0].row, "is the prompt of a chat")
    return prompts


def _make_pair(values: dict[str, Any]) -> PromptCompletion:
    record = json.loads(values["record"])
    completion = [{"role": "assistant", "content": record["reference"]}]
    return PromptCompletion(values["row"], record["prompt"], completion, None, record.get("item", {}))
