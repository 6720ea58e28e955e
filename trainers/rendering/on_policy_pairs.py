"""Preference pairs from a model's own answers: what it can do already, against what it does too."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    """What the model's answers were worth, and how many pairs came of them."""

    prompts: int = 0
    answers: int = 0
    mean_reward: float = Field(0.0, description="Over all answers: what the model earns before training.")
    pairs: int = 0
    prompts_without_pairs: int = Field(0, description="All answers to them were worth about the same.")


def generate_on_policy_pairs(
    recipe: OnPolicyPairsRecipe, base: ModelReference, dataset: Path, report: EventWriter
) -> tuple[Iterator[tuple[int, Row]], OnPolicyPairsReport]:
    """Rows of `prompt`, `chosen` and `rejected` with their lines, and a report that grows as they are read.

    Each pair takes one of the prompt's best answers against a different answer that is worth less by the
    margin. Raises DatasetInvalid for a reference by which answers cannot be judged.
    """
    done = OnPolicyPairsReport()
    return _rows(recipe, base, dataset, report, done), done


def _rows(
    recipe: OnPolicyPairsRecipe,
    base: ModelReference,
    dataset: Path,
    report: EventWriter,
    done: OnPolicyPairsReport,
) -> Iterator[tuple[int, Row]]:
    set_seed(recipe.seed)
    prompts = [turns[-1] for turns in read_prompt_completions(str(dataset), recipe.max_rows)]
    generator = TextGenerator(
        base,
        pick_device(None),
        recipe.max_new_tokens,
        temperature=recipe.temperature,
        answers=recipe.num_generations,
    )
    total = 0.0
    for batch in generator.batches(prompts, recipe.batch_size):
        texts = generator.answer(batch)
        for position, pair in enumerate(batch):
            start = position * recipe.num_generations
            answers = texts[start : start + recipe.num_generations]
            worths = [_worth(recipe, answer, pair) for answer in answers]
            total += sum(worths)
            drawn = _draw(recipe, pair, dict(zip(answers, worths, strict=True)))
            done.prompts += 1
            done.answers += len(answers)
            done.mean_reward = total / done.answers
            done.pairs += len(drawn)
            done.prompts_without_pairs += not drawn
            yield from ((pair.row, row) for row in drawn)
        report.progress(done.prompts, len(prompts))


def _worth(recipe: OnPolicyPairsRecipe, answer: str, pair: PromptCompletion) -> float:
    try:
        # Lengths in tokens are counted roughly here: the text is all that is left of an answer.
        return score_completion(recipe.rewards, answer, pair.answer, tokens=len(answer.split())).total
    except ValueError as error:
        raise DatasetInvalid(
            f"The answers to row {pair.row} cannot be judged: {error}",
            "Give each row a reference that the rewards can judge by, or choose other rewards.",
        ) from error


def _draw(recipe: OnPolicyPairsRecipe, pair: PromptCompletion, worths: dict[str, float]) -> list[Row]:
    """At most as many pairs as asked for, each with another rejected answer."""
    best = max(worths.values())
    chosen = [answer for answer, worth in worths.items() if worth == best and answer.strip()]
    rejected = [
        answer for answer, worth in worths.items() if worth <= best - recipe.margin and answer.strip()
    ]
    if not chosen or not rejected:
        return []
    rng = random.Random(fingerprint(pair.prompt, recipe.seed))  # noqa: S311  # Nothing secret.
    rng.shuffle(rejected)
    return [_row(pair, rng.choice(chosen), other) for other in rejected[: recipe.pairs_per_prompt]]


def _row(pair: PromptCompletion, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": pair.prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
