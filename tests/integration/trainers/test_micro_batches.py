"""Goal: the objective of a step does not depend on its micro-batches, or the product says that it does.

Method: the loss and the gradient of one step at fixed weights, as 1, 2 and 8 micro-batches of completions of
unequal length. The model differs from the reference, or most losses would be constants.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from transformers import Trainer

from tests.integration.trainers.conftest import events
from tests.integration.trainers.stages import run_stage
from trainers import dpo, grpo
from trainers.configs import DpoConfig, DpoLoss, parse_stage
from trainers.configs.stages.grpo import GrpoConfig, GrpoLoss
from trainers.configs.training import Precision
from trainers.modeling.load import load_config, load_tokenizer
from trainers.preflight.findings import FindingCode
from trainers.preflight.setting_findings import check_settings
from trainers.rendering.examples.preferences import load_preferences
from trainers.runtime.events import EventWriter
from trainers.training.on_policy.prompt_trainer import PromptTrainer
from trainers.training.on_policy.rollouts import RolloutRecorder, load_prompts
from trainers.training.policy import load_policy

T = TypeVar("T", bound=Trainer)
Rows = list[dict[str, Any]]
Step = tuple[float, torch.Tensor]
BATCH = 8
COMPLETION_TOKENS = 12
PAIRS: Rows = [
    {
        "prompt": f"What is {n} + {n}?",
        "chosen": f"#### {2 * n}" * (1 + n % 4),
        "rejected": f"#### {n + 1}" * (1 + (3 * n + 1) % 4),
    }
    for n in range(BATCH)
]
ANSWERS: Rows = [{"question": pair["prompt"], "answer": pair["chosen"]} for pair in PAIRS]
# TRL reads a property that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def dpo_trainer(
    adapted: dict[str, str],
    write_rows: Callable[[Rows], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dpo.PairTrainer:
    values = {"stage": "dpo", "base": adapted, "dataset": write_rows(PAIRS), "label_smoothing": 0.1}
    config = parse_stage(values | {"losses": {"robust": 1}, "batch_size": BATCH, "beta": 0.5})
    assert isinstance(config, DpoConfig)
    tokenizer = load_tokenizer(config.base)
    folder = tmp_path_factory.mktemp("dpo")
    model = load_policy(config, Precision.fp32, folder, EventWriter(None))
    preferences = load_preferences(config.dataset, tokenizer, config.max_length)
    trainer = dpo._build_trainer(config, folder, model, tokenizer, preferences, Precision.fp32)
    return _moved(trainer)


@pytest.fixture(scope="module")
def grpo_trainer(
    adapted: dict[str, str],
    write_rows: Callable[[Rows], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> PromptTrainer:
    values = {"stage": "grpo", "base": adapted, "dataset": write_rows(ANSWERS), "rewards": [{"kind": "chrf"}]}
    more = {
        "batch_size": BATCH,
        "num_generations": 4,
        "beta": 0.1,
        "max_completion_length": COMPLETION_TOKENS,
    }
    config = parse_stage(values | more)
    assert isinstance(config, GrpoConfig)
    tokenizer = load_tokenizer(config.base)
    prompts = load_prompts(config.dataset, config.rewards, tokenizer)
    folder = tmp_path_factory.mktemp("grpo")
    model = load_policy(config, Precision.fp32, folder, EventWriter(None))
    rollouts = RolloutRecorder(config.rewards, config.num_generations)
    return _moved(grpo._build_trainer(config, folder, model, tokenizer, prompts, rollouts, Precision.fp32))


@pytest.fixture(scope="module")
def completions() -> dict[str, torch.Tensor]:
    """Return a step of GRPO after the model has moved away from the one that sampled it."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([1, 12, 3, 7, 2, 12, 5, 9])
    shape = BATCH, COMPLETION_TOKENS
    mask = (torch.arange(COMPLETION_TOKENS) < lengths[:, None]).long()
    logps = -3 + torch.randn(shape, generator=generator) / 4
    return {
        "prompt_ids": torch.randint(5, 40, (BATCH, 4), generator=generator),
        "prompt_mask": torch.ones(BATCH, 4, dtype=torch.long),
        "completion_ids": torch.randint(5, 40, shape, generator=generator),
        "completion_mask": mask,
        "advantages": torch.randn(BATCH, generator=generator),
        "old_per_token_logps": logps,
        "ref_per_token_logps": logps + torch.randn(shape, generator=generator) / 4,
        "num_items_in_batch": mask.sum(),
    }


@pytest.mark.parametrize("rows", [8, 6], ids=["whole-step", "last-step-of-an-epoch"])
@pytest.mark.parametrize("loss", [loss for loss in DpoLoss if not loss.depends_on_micro_batch])
def test_a_dpo_step_is_the_same_in_any_micro_batches(
    dpo_trainer: dpo.PairTrainer, loss: DpoLoss, rows: int
) -> None:
    dpo_trainer.loss_types, dpo_trainer.loss_weights = [loss.value], [1.0]
    whole, halved, single = (_dpo_step(dpo_trainer, rows, size) for size in (8, 4, 1))
    assert _are_same(whole, halved)
    assert _are_same(whole, single)


@pytest.mark.parametrize("loss", [DpoLoss.aot, DpoLoss.aot_unpaired])
def test_the_losses_that_sort_a_micro_batch_are_known_to_depend_on_it(
    dpo_trainer: dpo.PairTrainer, loss: DpoLoss
) -> None:
    dpo_trainer.loss_types, dpo_trainer.loss_weights = [loss.value], [1.0]
    assert not _are_same(_dpo_step(dpo_trainer, BATCH, BATCH), _dpo_step(dpo_trainer, BATCH, 1))
    assert loss.depends_on_micro_batch


@pytest.mark.parametrize("loss", GrpoLoss)
def test_a_grpo_step_is_the_same_in_any_micro_batches(
    grpo_trainer: PromptTrainer, completions: dict[str, torch.Tensor], loss: GrpoLoss
) -> None:
    grpo_trainer.loss_type = loss.value
    grpo_trainer.importance_sampling_level = "sequence" if loss is GrpoLoss.luspo else "token"
    whole, halved, single = (_grpo_step(grpo_trainer, completions, size) for size in (8, 4, 1))
    are_same = _are_same(whole, halved) and _are_same(whole, single)
    assert are_same is (loss is not GrpoLoss.bnpo)


def test_sigmoid_with_sft_trains_and_validates_equally_at_each_micro_batch(
    adapted: dict[str, str], write_rows: Callable[[Rows], str], tmp_path: Path
) -> None:
    values = {
        "stage": "dpo",
        "base": adapted,
        "dataset": write_rows(PAIRS),
        "validation_dataset": write_rows(PAIRS[:5]),
        "validate_every_steps": 2,
        "losses": {"sigmoid": 1, "sft": 0.5},
        "batch_size": BATCH,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "log_every_steps": 1,
    }
    names = ("loss", "grad_norm", "validation_loss")
    runs = []
    for size in (8, 2, 1):
        assert run_stage(values | {"micro_batch_size": size}, tmp_path / str(size)) is not None
        logged = [event["values"] for event in events(tmp_path / str(size), "metrics")]
        runs.append([entry[name] for entry in logged for name in names if name in entry])
    assert len(runs[0]) == 5
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[2] == pytest.approx(runs[0], rel=1e-5)


@pytest.mark.parametrize(
    ("values", "size", "message"),
    [
        (
            {"stage": "dpo", "losses": {"aot": 1, "aot_unpaired": 1}},
            2,
            "aot and aot_unpaired compare the rows",
        ),
        ({"stage": "grpo", "loss": "bnpo", "rewards": [{"kind": "chrf"}]}, 4, "bnpo compares the rows"),
        ({"stage": "dpo", "losses": {"aot": 1}}, BATCH, None),
        ({"stage": "dpo", "losses": {"sft": 1, "sigmoid": 1}}, 2, None),
    ],
)
def test_a_loss_that_depends_on_the_micro_batch_is_a_warning_if_the_step_has_several(
    starter: Path, values: dict[str, Any], size: int, message: str | None
) -> None:
    config = parse_stage(
        {"base": str(starter), "dataset": "a.jsonl", "batch_size": BATCH, "micro_batch_size": size} | values
    )
    found = [
        one
        for one in check_settings(config, load_config(str(starter)))  # type: ignore[arg-type]
        if one.code is FindingCode.loss_depends_on_micro_batch
    ]
    assert [message in one.message for one in found if message] == ([True] if message else [])
    assert bool(found) is (message is not None)


def _moved(trainer: T) -> T:
    """Move the trained weights away from the reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    trainer.model.train()
    return trainer


def _dpo_step(trainer: dpo.PairTrainer, rows: int, size: int) -> Step:
    pairs = [trainer.train_dataset[row] for row in range(rows)]
    batches = [trainer.data_collator(pairs[start : start + size]) for start in range(0, rows, size)]
    samples, _ = trainer.get_batch_samples(iter(batches), BATCH // size, torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(samples)
    # The Trainer divides the loss of each micro-batch by their number.
    return _step(trainer, (trainer.compute_loss(trainer.model, inputs) / len(samples) for inputs in samples))


def _grpo_step(trainer: PromptTrainer, whole: dict[str, torch.Tensor], size: int) -> Step:
    parts = BATCH // size
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = parts
    batches = [
        {name: value[start : start + size] if value.dim() else value for name, value in whole.items()}
        for start in range(0, BATCH, size)
    ]
    return _step(trainer, (trainer.compute_loss(trainer.model, inputs) for inputs in batches))


def _step(trainer: Any, losses: Iterator[torch.Tensor]) -> Step:
    trainer.model.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    gradients = [one.grad.flatten() for one in trainer.model.parameters() if one.grad is not None]
    return total, torch.cat(gradients)


def _are_same(one: Step, other: Step) -> bool:
    distance = (one[1] - other[1]).norm() / one[1].norm()
    return bool(distance < 1e-4) and one[0] == pytest.approx(other[0], rel=1e-4, abs=1e-6)
