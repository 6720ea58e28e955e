"""What a model answered in reinforcement learning, and what each reward gave for it."""

import json
import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trainers.configs.rewards import CorrectnessReward, Reward, reward_name
from trainers.rendering.render import PromptCompletion, read_prompt_completions, tokenize_prompt
from trainers.rewards.score import find_references_without_answer
from trainers.rewards.trl_functions import RewardFunction, completion_text, reward_functions
from trainers.runtime.errors import DatasetInvalid

# A group that is right or wrong as a whole is common; this many in a row are a fault of the reward.
CONSTANT_GROUPS = 16


def load_prompts(
    dataset: str, rewards: Sequence[Reward], tokenizer: PreTrainedTokenizerBase
) -> list[PromptCompletion]:
    """The last turn of each row, whose answer is the reference; raises DatasetNotFound or DatasetInvalid."""
    pairs = [turns[-1] for turns in read_prompt_completions(dataset)]
    if not pairs:
        raise DatasetInvalid(f"The dataset {dataset} has no prompts.", "Add rows.")
    for pair in pairs:
        if pair.tools:
            raise DatasetInvalid(
                f"Row {pair.row} of {dataset} offers tools, which GRPO does not put into its prompts.",
                "Leave the row out, or train on it with SFT.",
            )
    if any(isinstance(reward, CorrectnessReward) for reward in rewards):
        _require_answers(pairs, dataset)
    tokenize_prompt(pairs[0], tokenizer)
    return pairs


def build_prompt_dataset(pairs: list[PromptCompletion], count: int, seed: int) -> Dataset:
    """`count` prompts: pass after pass over all rows, each in an order of its own.

    All passes are laid out at once, because TRL's sampler forgets on resuming how often it has shuffled.
    """
    rng = random.Random(seed)  # noqa: S311  # Nothing secret.
    order: list[int] = []
    while len(order) < count:
        order += rng.sample(range(len(pairs)), len(pairs))
    # As text, because a table would give every message the fields of all others.
    rows = [json.dumps({"prompt": pair.prompt, "reference": pair.answer}) for pair in pairs]
    dataset = Dataset.from_dict({"row": [rows[i] for i in order[:count]]})
    return dataset.with_transform(_decoded)


class RolloutRecorder:
    """Watches the rewards as they are given; it holds the last batch, and runs of equal values."""

    def __init__(self, rewards: Sequence[Reward], num_generations: int) -> None:
        functions, self.weights = reward_functions(rewards)
        self.names = [reward_name(reward) for reward in rewards]
        self.functions = [
            self._watched(name, function) for name, function in zip(self.names, functions, strict=True)
        ]
        self._num_generations = num_generations
        self._batch: list[dict[str, Any]] = []
        self._constant_groups = dict.fromkeys(self.names, 0)

    def samples(self, count: int) -> list[dict[str, Any]]:
        """The first answers of the last batch, with each reward's value before its weight and the total."""
        return [sample | {"total": self._total(sample["rewards"])} for sample in self._batch[:count]]

    def constant(self) -> list[str]:
        """Rewards that told no two answers to a prompt apart, in any of the last groups."""
        return [name for name, groups in self._constant_groups.items() if groups >= CONSTANT_GROUPS]

    def _watched(self, name: str, function: RewardFunction) -> RewardFunction:
        def reward(completions: list[Any], **columns: Any) -> list[float]:
            values = function(completions, **columns)
            self._note(name, completions, values, columns)
            return values

        reward.__name__ = name  # TRL logs a function's rewards under this name.
        return reward

    def _note(self, name: str, completions: list[Any], values: list[float], columns: dict[str, Any]) -> None:
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


def _require_answers(pairs: list[PromptCompletion], dataset: str) -> None:
    missing = find_references_without_answer([pair.answer for pair in pairs])
    if missing:
        raise DatasetInvalid(
            f"Row {pairs[missing[0]].row} of {dataset} has no number in its reference answer, "
            f"and {len(missing)} of {len(pairs)} rows are like it, so no answer to them can be correct.",
            "Write the final answer after `####` or in a box, or leave out the reward correctness.",
        )


def _decoded(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    rows = [json.loads(row) for row in batch["row"]]
    return {name: [row[name] for row in rows] for name in ("prompt", "reference")}
