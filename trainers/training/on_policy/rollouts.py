"""The prompts of on-policy training, and a record of completions and their rewards."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trainers.configs.base import TrainingData
from trainers.configs.graders import GraderConfig, find_variables
from trainers.configs.graders.templates import VariableMissing
from trainers.configs.rewards import (
    NEEDS_REFERENCE,
    CorrectnessReward,
    Reward,
    list_reward_graders,
    reward_name,
)
from trainers.rendering.cache.folder import RowCache
from trainers.rendering.cache.spec import RowKind
from trainers.rendering.examples.prompts import PromptSet, render_prompts
from trainers.rewards.completion_texts import completion_text
from trainers.rewards.grader_function import GraderCounts, GraderFunction
from trainers.rewards.trl_functions import RewardFunction, reward_functions
from trainers.runtime.errors import DatasetInvalid
from trainers.training.datasets import map_dataset

# One group that is right or wrong as a whole is common; this many in a row mean a useless reward.
MIN_CONSTANT_GROUPS = 16


def load_prompts(
    dataset: TrainingData,
    rewards: Sequence[Reward],
    tokenizer: PreTrainedTokenizerBase,
    cache: RowCache | None = None,
) -> PromptSet:
    """Return the last turn of each row; its completion is the reference, which graders do not need.

    Raises DatasetFileNotFound, DatasetInvalid or TemplateMissing.
    """
    graders = list_reward_graders(rewards)
    prompts = render_prompts(RowKind.graded if graders else RowKind.references, dataset, tokenizer, cache)
    for grader in graders:
        _require_fields(prompts, dataset, grader)
    if graders and any(isinstance(reward, NEEDS_REFERENCE) for reward in rewards):
        _require_references(prompts, dataset)
    if any(isinstance(reward, CorrectnessReward) for reward in rewards):
        _require_answers(prompts, dataset)
    return prompts


def load_student_prompts(
    dataset: TrainingData, tokenizer: PreTrainedTokenizerBase, cache: RowCache | None = None
) -> PromptSet:
    """Return the last prompt of each row in any format; a completion is not needed.

    Raises DatasetFileNotFound, DatasetInvalid or TemplateMissing.
    """
    return render_prompts(RowKind.prompts, dataset, tokenizer, cache)


def build_prompt_dataset(prompts: PromptSet, count: int, seed: int) -> Dataset:
    """Return `count` prompts: epoch after epoch over all rows, each in a new random order.

    The dataset contains all epochs, because TRL's sampler does not restore its shuffling when a run resumes.
    """
    rng = random.Random(seed)  # noqa: S311  # Not for secrets.
    rows, epochs = prompts.rows, -(-count // prompts.rows)
    order = np.concatenate([np.array(rng.sample(range(rows), rows), np.int32) for _ in range(epochs)])
    return map_dataset(prompts.mapped, ("record",)).select(order[:count]).with_transform(_decode_rows)


class RolloutRecorder:
    """Wraps the reward functions and records the last batch, and how long each reward has been constant."""

    def __init__(self, rewards: Sequence[Reward], num_generations: int) -> None:
        functions, self.weights = reward_functions(rewards)
        graders = [function for function in functions if isinstance(function, GraderFunction)]
        self.grader_counts: dict[str, GraderCounts] = {one.__name__: one.counts for one in graders}
        self.names = [reward_name(reward) for reward in rewards]
        self.functions = [
            self._record_calls(name, function) for name, function in zip(self.names, functions, strict=True)
        ]
        self._num_generations = num_generations
        self._is_paused = False
        self._batch: list[dict[str, Any]] = []
        self._constant_groups = dict.fromkeys(self.names, 0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing in the block, whose completions are not trained on."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Return the first completions of the last batch with their unweighted rewards and the total."""
        return [sample | {"total": self._total(sample["rewards"])} for sample in self._batch[:count]]

    def constant_rewards(self) -> list[str]:
        """Return the rewards that were equal for all completions of a prompt, in each of the last groups."""
        return [name for name, groups in self._constant_groups.items() if groups >= MIN_CONSTANT_GROUPS]

    def _record_calls(self, name: str, function: RewardFunction) -> RewardFunction:
        def reward(completions: list[Any], **columns: Any) -> list[float]:
            values = function(completions, **columns)
            if not self._is_paused:
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


def _require_fields(prompts: PromptSet, dataset: TrainingData, grader: GraderConfig) -> None:
    variables = [one for one in find_variables(grader) if one.namespace == "item"]
    for pair in prompts.pairs if variables else ():
        for variable in variables:
            try:
                variable.find({"item": pair.source})
            except VariableMissing as error:
                raise DatasetInvalid(
                    f"Row {pair.row} of {dataset} lacks a field of the grader {grader.name!r}: {error}.",
                    "Add the field to each row, or correct the grader's templates.",
                ) from None


def _require_references(prompts: PromptSet, dataset: TrainingData) -> None:
    missing = next((pair.row for pair in prompts.pairs if not pair.completion_text.strip()), None)
    if missing is not None:
        raise DatasetInvalid(
            f"Row {missing} of {dataset} has no completion, which one of the rewards compares with.",
            "Add an assistant message to each row, or use only rewards that need none.",
        )


def _require_answers(prompts: PromptSet, dataset: TrainingData) -> None:
    missing = prompts.without_answer
    if missing:
        raise DatasetInvalid(
            f"{len(missing)} of {prompts.rows} rows of {dataset} have no number in their reference answer, "
            f"the first in row {prompts.pairs[missing[0]].row}, so no completion can be correct.",
            "Write the final answer after `####` or in a box, or remove the reward correctness.",
        )


def _decode_rows(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    rows = [json.loads(row) for row in batch["record"]]
    names = [name for name in ("prompt", "reference", "item") if name in rows[0]]
    return {name: [row[name] for row in rows] for name in names}
