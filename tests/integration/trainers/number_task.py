"""A task that a tiny model learns in seconds: one of two answers for each of four numbers, in ten sentences.

The starter model is first trained on both answers, mostly on the wrong one. A stage has learned if the model
then gives the right answer to sentences with numbers that were not in its rows together.
"""

import random
from pathlib import Path
from typing import Any

import torch

from tests.integration.trainers.stages import run_stage
from trainers.configs.base import AdaptedModel
from trainers.modeling.generation import TextGenerator
from trainers.rendering.render import PromptCompletion

SENTENCES = (
    *("Tom has {} pens.", "There are {} apples.", "Tom buys {} pens.", "{} + {}", "{} books."),
    *("{} more.", "How many are {}?", "{} bags.", "Bo had {} cups.", "{} keys and {} hats."),
)
QUESTIONS = [(sentence.replace("{}", str(n)), n) for sentence in SENTENCES for n in (10, 20, 30, 40)]
random.Random(0).shuffle(QUESTIONS)
HELD_OUT, TRAINED = QUESTIONS[:16], QUESTIONS[16:]


def right(number: int) -> str:
    return f"#### {2 * number + 7}"


def wrong(number: int) -> str:
    return f"#### {2 * number + 8}"


def right_rows() -> list[dict[str, Any]]:
    return [{"prompt": question, "completion": right(n)} for question, n in TRAINED]


def wrong_rows() -> list[dict[str, Any]]:
    return [{"prompt": question, "completion": wrong(n)} for question, n in TRAINED]


def labelled_rows() -> list[dict[str, Any]]:
    good = [row | {"label": True} for row in right_rows()]
    return good + [row | {"label": False} for row in wrong_rows()]


def train_on(dataset: str, base: Path, steps: int, run_dir: Path) -> Path:
    """Return the base after supervised fine-tuning of all weights."""
    config = {
        "stage": "sft",
        "base": str(base),
        "dataset": dataset,
        "tuning": {"method": "full"},
        "learning_rate": 3e-3,
        "max_steps": steps,
        "batch_size": 32,
        "micro_batch_size": 32,
        "preflight": "off",
    }
    assert run_stage(config, run_dir) is not None
    return run_dir / "model"


def held_out_score(model: str | AdaptedModel) -> float:
    """Return the share of the held-out questions that the model answers right."""
    generator = TextGenerator(model, torch.device("cpu"), 8)
    prompts = [
        PromptCompletion(row, [{"role": "user", "content": question}], [], None)
        for row, (question, _) in enumerate(HELD_OUT)
    ]
    answers = zip(generator.generate(prompts), HELD_OUT, strict=True)
    return sum(answer == right(n) for answer, (_, n) in answers) / len(HELD_OUT)
