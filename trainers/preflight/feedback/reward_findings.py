"""Findings in rewards, on completions sampled from the model before training."""

from collections.abc import Iterator, Sequence
from statistics import pstdev

from transformers import set_seed

from trainers.configs.rewards import GraderReward, Reward, reward_name
from trainers.configs.stages.grpo import GrpoConfig
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import pick_device
from trainers.preflight.findings import MAX_EXAMPLES, Finding, FindingCode, FindingLevel, new_finding
from trainers.rendering.examples.prompts import PromptSet
from trainers.rendering.render import PromptCompletion
from trainers.rewards.score import score_completion

MAX_SAMPLED_PROMPTS = 16
MAX_SAMPLED_TOKENS = 256
# The maximum of each kind of reward.
MAX_REWARDS = {"length": 0.0, "correctness": 1.0, "format": 1.0, "steps": 1.0, "chrf": 1.0, "bleu": 1.0}


def check_references(prompts: PromptSet) -> Iterator[Finding]:
    """Yield a finding if references have no final answer, so that no completion can be correct."""
    missing = prompts.without_answer
    if missing:
        first = [prompts.pairs[position] for position in missing[:MAX_EXAMPLES]]
        yield new_finding(
            FindingCode.reference_without_answer,
            FindingLevel.error,
            f"{len(missing)} of {prompts.rows} references have no final answer.",
            "Add the final answer as a last line such as `#### 8`, or drop these rows.",
            places=[(pair.row, pair.completion_text) for pair in first],
            count=len(missing),
            rows=prompts.rows,
        )


def check_rewards(config: GrpoConfig, prompts: Sequence[PromptCompletion]) -> Iterator[Finding]:
    """Yield a finding for each reward that is equal for all completions of each prompt.

    The completions are sampled with the temperature and group size of training.
    """
    set_seed(config.seed)
    sample = list(prompts[:MAX_SAMPLED_PROMPTS])
    generator = TextGenerator(
        config.base,
        pick_device(config.queue),
        min(config.max_completion_length, MAX_SAMPLED_TOKENS),
        temperature=config.temperature,
        completions_per_prompt=config.num_generations,
    )
    texts = generator.generate(sample)
    groups = [texts[n : n + config.num_generations] for n in range(0, len(texts), config.num_generations)]
    highest = {reward_name(reward): _highest(reward) for reward in config.rewards}
    values: dict[str, list[list[float]]] = {}  # By reward, for each prompt those of its completions.
    for pair, group in zip(sample, groups, strict=True):
        reference = pair.completion_text
        scored = [
            score_completion(config.rewards, text, reference, len(text.split()), pair.source)
            for text in group
        ]
        for name in scored[0].parts:
            values.setdefault(name, []).append([result.parts[name] for result in scored])
    constant = [
        name
        for name, groups_of_values in values.items()
        if not any(pstdev(group) for group in groups_of_values)
    ]
    for name in constant:
        mean = sum(map(sum, values[name])) / len(texts)
        if mean >= highest[name] and len(constant) < len(values):
            continue  # All completions have the maximum already, and another reward is not constant.
        yield new_finding(
            FindingCode.reward_constant,
            FindingLevel.error if len(constant) == len(values) else FindingLevel.warning,
            f"The reward {name!r} is equal for all {config.num_generations} completions of each of "
            f"{len(sample)} prompts (mean {mean:.2f}), so nothing is learned from it.",
            "Choose prompts that the model solves sometimes, train with SFT first, or correct the reward.",
            places=[(pair.row, group[0]) for pair, group in zip(sample, groups, strict=True)],
        )


def _highest(reward: Reward) -> float:
    return reward.grader.best_score if isinstance(reward, GraderReward) else MAX_REWARDS[reward.kind]
