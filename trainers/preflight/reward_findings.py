"""Findings in rewards, on a sample of answers by the model that is to be trained."""

from collections.abc import Iterator, Sequence
from statistics import pstdev

from transformers import set_seed

from trainers.configs.rewards import reward_name
from trainers.configs.stages.grpo import GrpoConfig
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import pick_device
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding
from trainers.rendering.render import PromptCompletion
from trainers.rewards.score import find_references_without_answer, score_completion

SAMPLED_PROMPTS = 16
SAMPLED_TOKENS = 256
# The highest value of each kind of reward.
BEST = {"length": 0.0, "correctness": 1.0, "format": 1.0, "steps": 1.0, "chrf": 1.0, "bleu": 1.0}


def check_references(pairs: Sequence[PromptCompletion]) -> Iterator[Finding]:
    """References that hold no number, by which no answer could be judged."""
    missing = find_references_without_answer([pair.completion_text for pair in pairs])
    if missing:
        yield new_finding(
            FindingCode.reference_without_answer,
            FindingLevel.error,
            f"{len(missing)} of {len(pairs)} references hold no final answer.",
            "Write the final answer as the last line `#### 8`, or drop these rows.",
            places=[(pairs[n].row, pairs[n].completion_text) for n in missing],
            count=len(missing),
            rows=len(pairs),
        )


def check_rewards(config: GrpoConfig, prompts: Sequence[PromptCompletion]) -> Iterator[Finding]:
    """Rewards that give all answers to each prompt the same value, on answers sampled as training would."""
    set_seed(config.seed)
    sample = list(prompts[:SAMPLED_PROMPTS])
    generator = TextGenerator(
        config.base,
        pick_device(config.queue),
        min(config.max_completion_length, SAMPLED_TOKENS),
        temperature=config.temperature,
        completions_per_prompt=config.num_generations,
    )
    texts = generator.generate(sample)
    groups = [texts[n : n + config.num_generations] for n in range(0, len(texts), config.num_generations)]
    kinds = {reward_name(reward): reward.kind for reward in config.rewards}
    values: dict[str, list[list[float]]] = {}
    for pair, group in zip(sample, groups, strict=True):
        reference = pair.completion_text
        scored = [
            score_completion(config.rewards, text, reference, tokens=len(text.split())) for text in group
        ]
        for name in scored[0].parts:
            values.setdefault(name, []).append([result.parts[name] for result in scored])
    constant = [name for name, judged in values.items() if not any(pstdev(group) for group in judged)]
    for name in constant:
        mean = sum(map(sum, values[name])) / len(texts)
        if mean >= BEST[kinds[name]] and len(constant) < len(values):
            continue  # Nothing to mend, and another reward still teaches.
        yield new_finding(
            FindingCode.reward_constant,
            FindingLevel.error if len(constant) == len(values) else FindingLevel.warning,
            f"The reward {name!r} gave all of the model's own {config.num_generations} answers to each of "
            f"{len(sample)} prompts the same value ({mean:.2f} in the mean), so it teaches nothing.",
            "Choose prompts that the model solves sometimes, train with SFT first, or correct the reward.",
            places=[(pair.row, group[0]) for pair, group in zip(sample, groups, strict=True)],
        )
