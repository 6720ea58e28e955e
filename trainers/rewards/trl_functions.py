"""Rewards as functions for TRL's GRPO trainer: `reward(completions, **columns) -> list[float]`."""

from collections.abc import Callable, Sequence
from typing import Any

from trainers.configs.rewards import GraderReward, Reward, reward_name
from trainers.rewards.completion_texts import Completion, completion_text
from trainers.rewards.grader_function import GraderFunction
from trainers.rewards.score import score_reward

RewardFunction = Callable[..., list[float]]
REFERENCE_COLUMNS = ("reference", "answer")


def reward_functions(rewards: Sequence[Reward]) -> tuple[list[RewardFunction], list[float]]:
    """Return TRL's `reward_funcs`, one function with the name of each reward, and its `reward_weights`."""
    return [_make_function(reward) for reward in rewards], [reward.weight for reward in rewards]


def _make_function(reward: Reward) -> RewardFunction:
    if isinstance(reward, GraderReward):
        return GraderFunction(reward)

    def function(completions: list[Completion], **columns: Any) -> list[float]:
        texts = [completion_text(completion) for completion in completions]
        references, tokens = _references(columns, len(texts)), _token_counts(columns, len(texts))
        rows = zip(texts, references, tokens, strict=True)
        return [score_reward(reward, text, reference, count).value for text, reference, count in rows]

    # TRL logs the rewards under this name.
    function.__name__ = reward_name(reward)
    return function


def _references(columns: dict[str, Any], count: int) -> list[str | None]:
    # The first of the columns that exists; numbers become text.
    values = next((columns[name] for name in REFERENCE_COLUMNS if name in columns), [None] * count)
    return [None if value is None else str(value) for value in values]


def _token_counts(columns: dict[str, Any], count: int) -> list[int | None]:
    ids = columns.get("completion_ids")
    return [None] * count if ids is None else [len(row) for row in ids]
