"""Goal: only the layers that do not fit are recomputed, and the losses stay those of a run that keeps all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import losses
from tests.integration.trainers.stages import run_stage
from trainers.configs import TrainingConfig, parse_stage
from trainers.configs.stages.preflight import HostMemory
from trainers.preflight.memory.estimate import choose_recomputation, estimate_memory
from trainers.runtime import run_dir as files

PAIRS = [
    {"prompt": f"What is {n} + {n}?", "chosen": f"#### {2 * n}", "rejected": f"#### {n}"} for n in range(16)
]
SHORT = {"max_steps": 3, "batch_size": 4, "log_every_steps": 1, "preflight": "off", "queue": "cpu"}


@pytest.fixture(params=["sft", "dpo"])
def stage(
    request: pytest.FixtureRequest, starter: Path, training_rows: str, write_rows: Callable[..., str]
) -> dict[str, Any]:
    # TRL's DPO switches recomputation off and on again for its reference.
    dataset = training_rows if request.param == "sft" else write_rows(PAIRS)
    return {"stage": request.param, "base": str(starter), "dataset": dataset, **SHORT}


def host_with(config: TrainingConfig, share: float, tokens: int) -> HostMemory:
    """Return a host that has room for everything but this share of the activations."""
    (host,) = (estimate_memory(config, [], tokens) or {})["hosts"]
    needed = host["needed_bytes"] - share * host["parts"]["activations"]
    return HostMemory(worker="small", memory_bytes=int(needed / 0.9) + 2)


@pytest.mark.parametrize(("share", "every"), [(0, None), (0.2, 2), (0.7, 1), (1, 1)])
def test_as_few_layers_are_recomputed_as_the_memory_requires(
    stage: dict[str, Any], share: float, every: int | None
) -> None:
    config = parse_stage(stage)
    assert isinstance(config, TrainingConfig)
    assert choose_recomputation(config, host_with(config, share, 2048), 2048) == every


def test_recomputing_every_second_layer_changes_no_loss(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(stage, tmp_path / "kept")
    longest = (files.read_json(tmp_path / "kept" / files.RECOMPUTATION) or {})["longest_tokens"]
    monkeypatch.setattr(
        "trainers.training.arguments.agreed_host", lambda config: host_with(config, 0.2, longest)
    )
    run_stage(stage, tmp_path / "recomputed")
    report = files.read_json(tmp_path / "recomputed" / files.RECOMPUTATION)
    assert report is not None and report["every_n_layers"] == 2
    assert losses(tmp_path / "recomputed") == pytest.approx(losses(tmp_path / "kept"), rel=1e-6)
