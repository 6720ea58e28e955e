"""Preference pairs of a model's own completions: the best one of a prompt against worse ones.

Pairs that the model itself produced (on-policy) show it the difference that it can already make.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field
from transformers import set_seed

from trainers.configs.recipes import OnPolicyPairsRecipe
from trainers.data.fingerprint import fingerprint
from trainers.data.formats import Row
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import ModelReference, pick_device
from trainers.rendering.render import PromptCompletion, read_prompt_completions
from trainers.rewards.score import score_completion
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import EventWriter


class OnPolicyPairsReport(BaseModel):
    """Counts of completions and pairs, and the mean reward of the completions."""

    prompts: int = 0
    completions: int = 0
    mean_reward: float = Field(0.0, description="Over all completions, before training.")
    pairs: int = 0
    prompts_without_pairs: int = Field(
        0, description="Prompts whose completions differ in reward by less than the margin."
    )


def generate_on_policy_pairs(
    recipe: OnPolicyPairsRecipe, base: ModelReference, dataset: Path, events: EventWriter
) -> tuple[Iterator[tuple[int, Row]], OnPolicyPairsReport]:
    """Return rows of `prompt`, `chosen` and `rejected` with their line numbers, and a report.

    The report is complete once the rows are consumed. A pair is one of the prompt's best completions with
    another whose reward is lower by at least the margin. Raises DatasetInvalid for a reference that the
    rewards cannot use.
    """
    report = OnPolicyPairsReport()
    return _generate_rows(recipe, base, dataset, events, report), report


def _generate_rows(
    recipe: OnPolicyPairsRecipe,
    base: ModelReference,
    dataset: Path,
    events: EventWriter,
    report: OnPolicyPairsReport,
) -> Iterator[tuple[int, Row]]:
    set_seed(recipe.seed)
    prompts = [turns[-1] for turns in read_prompt_completions(str(dataset), recipe.max_rows)]
    n = recipe.num_generations
    generator = TextGenerator(
        base,
        pick_device(None),
        recipe.max_new_tokens,
        temperature=recipe.temperature,
        completions_per_prompt=n,
    )
    total = 0.0
    for batch in generator.split_into_batches(prompts, recipe.batch_size):
        texts = generator.generate(batch)
        for position, pair in enumerate(batch):
            completions = texts[position * n : (position + 1) * n]
            rewards = [_score(recipe, completion, pair) for completion in completions]
            total += sum(rewards)
            rows = _draw_pairs(recipe, pair, dict(zip(completions, rewards, strict=True)))
            report.prompts += 1
            report.completions += len(completions)
            report.mean_reward = total / report.completions
            report.pairs += len(rows)
            report.prompts_without_pairs += not rows
            yield from ((pair.row, row) for row in rows)
        events.write_progress(report.prompts, len(prompts))


def _score(recipe: OnPolicyPairsRecipe, completion: str, pair: PromptCompletion) -> float:
    try:
        # The generator returns text only, so words stand in for tokens where a reward counts them.
        return score_completion(
            recipe.rewards, completion, pair.completion_text, len(completion.split()), pair.source
        ).total
    except ValueError as error:
        raise DatasetInvalid(
            f"The completions of row {pair.row} cannot be scored: {error}",
            "Give each row a reference that the rewards can use, or choose other rewards.",
        ) from error


def _draw_pairs(recipe: OnPolicyPairsRecipe, pair: PromptCompletion, rewards: dict[str, float]) -> list[Row]:
    """Return at most `pairs_per_prompt` rows, each with another rejected completion."""
    best = max(rewards.values())
    chosen = [text for text, reward in rewards.items() if reward == best and text.strip()]
    rejected = [text for text, reward in rewards.items() if reward <= best - recipe.margin and text.strip()]
    if not chosen or not rejected:
        return []
    rng = random.Random(fingerprint(pair.prompt, recipe.seed))  # noqa: S311  # Not for secrets.
    rng.shuffle(rejected)
    return [
        {
            "prompt": pair.prompt,
            "chosen": [{"role": "assistant", "content": rng.choice(chosen)}],
            "rejected": [{"role": "assistant", "content": text}],
        }
        for text in rejected[: recipe.pairs_per_prompt]
    ]
