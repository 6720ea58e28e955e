"""The prompts of on-policy training, and a record of completions and their rewards."""

import json
import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trainers.configs.base import TrainingData
from trainers.configs.rewards import CorrectnessReward, Reward, reward_name
from trainers.rendering.plain_text import TemplateMissing
from trainers.rendering.render import (
    PromptCompletion,
    read_prompt_completions,
    read_prompts,
    tokenize_prompt,
)
from trainers.rewards.score import find_references_without_answer
from trainers.rewards.trl_functions import RewardFunction, completion_text, reward_functions
from trainers.runtime.errors import DatasetInvalid

# One group that is right or wrong as a whole is common; this many in a row mean a useless reward.
MIN_CONSTANT_GROUPS = 16


def load_prompts(
    dataset: TrainingData, rewards: Sequence[Reward], tokenizer: PreTrainedTokenizerBase
) -> list[PromptCompletion]:
    """Return the last turn of each row; its completion is the reference.

    Raises DatasetFileNotFound or DatasetInvalid.
    """
    pairs = [turns[-1] for turns in read_prompt_completions(dataset)]
    _check_prompts(pairs, dataset, tokenizer)
    if any(isinstance(reward, CorrectnessReward) for reward in rewards):
        _require_answers(pairs, dataset)
    return pairs


def load_student_prompts(dataset: TrainingData, tokenizer: PreTrainedTokenizerBase) -> list[PromptCompletion]:
    """Return the last prompt of each row in any format; a completion is not needed.

    Raises DatasetFileNotFound or DatasetInvalid.
    """
    pairs = list(read_prompts(dataset))
    _check_prompts(pairs, dataset, tokenizer)
    return pairs


def build_prompt_dataset(pairs: list[PromptCompletion], count: int, seed: int) -> Dataset:
    """Return `count` prompts: epoch after epoch over all rows, each in a new random order.

    The dataset contains all epochs, because TRL's sampler does not restore its shuffling when a run resumes.
    """
    rng = random.Random(seed)  # noqa: S311  # Not for secrets.
    order: list[int] = []
    while len(order) < count:
        order += rng.sample(range(len(pairs)), len(pairs))
    # As JSON text: in an Arrow table every message would have the fields of all other messages.
    rows = [json.dumps({"prompt": pair.prompt, "reference": pair.completion_text}) for pair in pairs]
    dataset = Dataset.from_dict({"row": [rows[i] for i in order[:count]]})
    return dataset.with_transform(_decode_rows)


class RolloutRecorder:
    """Wraps the reward functions and records the last batch, and how long each reward has been constant."""

    def __init__(self, rewards: Sequence[Reward], num_generations: int) -> None:
        functions, self.weights = reward_functions(rewards)
        self.names = [reward_name(reward) for reward in rewards]
        self.functions = [
            self._record_calls(name, function) for name, function in zip(self.names, functions, strict=True)
        ]
        self._num_generations = num_generations
        self._batch: list[dict[str, Any]] = []
        self._constant_groups = dict.fromkeys(self.names, 0)

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Return the first completions of the last batch with their unweighted rewards and the total."""
        return [sample | {"total": self._total(sample["rewards"])} for sample in self._batch[:count]]

    def constant_rewards(self) -> list[str]:
        """Return the rewards that were equal for all completions of a prompt, in each of the last groups."""
        return [name for name, groups in self._constant_groups.items() if groups >= MIN_CONSTANT_GROUPS]

    def _record_calls(self, name: str, function: RewardFunction) -> RewardFunction:
        def reward(completions: list[Any], **columns: Any) -> list[float]:
            values = function(completions, **columns)
            self._record(name, completions, values, columns)
            return values

        reward.__name__ = name  # TRL logs a function's rewards under this name.
        return reward

    def _record(
        self, name: str, completions: list[Any], values: list[float], columns: dict[str, Any]
    ) -> None:
        if name == self.names[0]:
            rows = zip(columns["prompts"], completions, columns["reference"], strict=True)
            self._batch = [
                {
                    "prompt": prompt,
                    "completion": completion_text(completion),
                    "reference": reference,
                    "rewards": {},
                }
                for prompt, completion, reference in rows
            ]
        for sample, value in zip(self._batch, values, strict=True):
            sample["rewards"][name] = value
        for start in range(0, len(values), self._num_generations):
            is_constant = len(set(values[start : start + self._num_generations])) == 1
            self._constant_groups[name] = self._constant_groups[name] + 1 if is_constant else 0

    def _total(self, rewards: dict[str, float]) -> float:
        return sum(weight * rewards[name] for name, weight in zip(self.names, self.weights, strict=True))


def _check_prompts(
    pairs: Sequence[PromptCompletion], dataset: TrainingData, tokenizer: PreTrainedTokenizerBase
) -> None:
    if not pairs:
        raise DatasetInvalid(f"The dataset {dataset} has no prompts.", "Add rows.")
    if tokenizer.chat_template is None:
        raise TemplateMissing(pairs[0].row, "is the prompt of a chat")
    for pair in pairs:
        if pair.tools:
            raise DatasetInvalid(
                f"Row {pair.row} of {dataset} has tools, which TRL's sampling does not render.",
                "Remove the row, or train on it with SFT.",
            )
    tokenize_prompt(pairs[0], tokenizer)


def _require_answers(pairs: list[PromptCompletion], dataset: TrainingData) -> None:
    missing = find_references_without_answer([pair.completion_text for pair in pairs])
    if missing:
        raise DatasetInvalid(
            f"{len(missing)} of {len(pairs)} rows of {dataset} have no number in their reference answer, the "
            f"first in row {pairs[missing[0]].row}, so no completion can be correct.",
            "Write the final answer after `####` or in a box, or remove the reward correctness.",
        )


def _decode_rows(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    rows = [json.loads(row) for row in batch["row"]]
    return {name: [row[name] for row in rows] for name in ("prompt", "reference")}
