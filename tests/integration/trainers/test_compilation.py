"""Goal: a run with `compile` computes what it computes without, and leaves the same files.

Tolerances are those of fp32: compiled code adds in another order. The matrix over stages and settings takes
minutes of compilation and is slow; every run has one case.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.testing import assert_close

from tests.integration.trainers.conftest import events, losses
from tests.integration.trainers.stages import at_checkpoint, run_stage
from trainers.modeling.fused.compilation import report_limit
from trainers.runtime.errors import DeviceUnavailable

pytestmark = [
    # Torch's compiler imports modules of torch that torch has deprecated, and hides this warning of its own.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]

Stage = dict[str, Any]
SHORT = {
    "max_steps": 4,
    "batch_size": 4,
    "micro_batch_size": 2,
    "log_every_steps": 1,
    "preflight": "off",
    "queue": "cpu",
}
BRIEF = {"max_completion_length": 8}
LORA = {"tuning": {"rank": 4, "alpha": 8}, "learning_rate": 1e-2}
FULL = {"tuning": {"method": "full"}, "learning_rate": 1e-3}
PAIRS = [
    {"prompt": f"What is {n} + {n}?", "chosen": f"#### {2 * n}", "rejected": f"#### {n}" * (1 + n % 3)}
    for n in range(16)
]


def files_of(run_dir: Path) -> dict[str, list[str]]:
    """Return the files of the model, and the names of the weights in each."""
    found = sorted(path for path in (run_dir / "model").iterdir())
    return {path.name: sorted(load_file(path)) if path.suffix == ".safetensors" else [] for path in found}


def assert_equal_runs(stage: Stage, tmp_path: Path) -> None:
    run_stage(stage, tmp_path / "eager")
    run_stage(stage | {"compile": True}, tmp_path / "compiled")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    norms = [
        [event["values"]["grad_norm"] for event in events(tmp_path / name, "metrics")]
        for name in ("compiled", "eager")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert files_of(tmp_path / "compiled") == files_of(tmp_path / "eager")
    codes = [event["code"] for event in events(tmp_path / "compiled", "warning")]
    assert "layers_compiled" in codes and "compile_limit_reached" not in codes


@pytest.fixture
def sft(starter: Path, training_rows: str) -> Stage:
    return {"stage": "sft", "base": str(starter), "dataset": training_rows, **SHORT}


@pytest.fixture
def folder_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the folder of torch's own cache, with the environment that importing torch leaves."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = str(default_cache_dir())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
    return folder


def test_a_compiled_run_has_the_losses_and_files_of_any_other(
    sft: Stage, tmp_path: Path, folder_of_torch: str
) -> None:
    # One micro-batch a step, of full tuning: one variant of the layer is compiled.
    assert_equal_runs(sft | FULL | {"attention": "sdpa", "max_steps": 2, "batch_size": 2}, tmp_path)
    # Compiled code goes with the run: torch's own folder would grow for ever.
    assert not any(Path(folder_of_torch).rglob("*.so"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "sdpa"},
        {"attention": "varlen"},
        {"attention": "varlen", "packing": True, "max_length": 128},
        {"attention": "sdpa", "activation_checkpointing": True},
        {"attention": "varlen", "activation_checkpointing": True},
        {"attention": "eager", "neftune_alpha": 5},
    ],
    ids=["padded", "padding-free", "packed", "recomputed", "padding-free recomputed", "eager"],
)
def test_every_kind_of_batch_trains_the_same_when_compiled(
    sft: Stage, tuning: Stage, changes: Stage, tmp_path: Path
) -> None:
    assert_equal_runs(sft | tuning | changes, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["dpo", "kto", "grpo", "distill"])
def test_every_stage_trains_the_same_when_compiled(
    sft: Stage,
    adapted: dict[str, str],
    kind: str,
    tuning: Stage,
    write_rows: Callable[..., str],
    tmp_path: Path,
) -> None:
    labelled = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": n % 2 == 0}
        for n, row in enumerate(PAIRS)
    ]
    own: dict[str, Stage] = {
        "dpo": {"dataset": write_rows(PAIRS)},
        "kto": {"dataset": write_rows(labelled)},
        "grpo": {
            "num_generations": 2,
            "max_completion_length": 8,
            "rewards": [{"kind": "chrf"}],
            "beta": 0.02,
        },
        "distill": {"teacher": adapted} | BRIEF,
    }
    assert_equal_runs(sft | tuning | own[kind] | {"stage": kind, "max_steps": 2}, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_run_resumes_with_the_same_losses(sft: Stage, tmp_path: Path) -> None:
    stage = sft | FULL | {"compile": True, "save_every_steps": 2, "attention": "sdpa"}
    run_stage(stage, tmp_path / "whole")
    at_checkpoint(tmp_path / "whole", tmp_path / "resumed", 2)
    (weights,) = (tmp_path / "resumed").rglob("model.safetensors")
    assert not any("_orig_mod" in name for name in load_file(weights))
    run_stage(stage, tmp_path / "resumed")
    (resumed,) = events(tmp_path / "resumed", "resumed")
    assert resumed["exactness"] == "approximate" and "compiled" in resumed["reasons"][0]
    assert losses(tmp_path / "resumed") == {
        step: pytest.approx(loss, rel=1e-6) for step, loss in losses(tmp_path / "whole").items() if step > 2
    }
    whole, again = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "resumed")
    )
    assert_close(again, whole, atol=1e-6, rtol=1e-5)


def test_a_host_without_a_compiler_refuses_at_once(sft: Stage, tmp_path: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "absent"),)}),
        pytest.raises(DeviceUnavailable, match=r"compile is true, but torch finds no C\+\+ compiler"),
    ):
        run_stage(sft | {"compile": True}, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_too_many_variants_are_reported_once() -> None:
    found: list[tuple[str, str]] = []

    def double(value: torch.Tensor, times: int) -> torch.Tensor:
        return value * times

    with report_limit(lambda *warning: found.append(warning)), torch._dynamo.config.patch(recompile_limit=2):
        compiled = torch.compile(double, backend="eager", dynamic=False)
        results = [compiled(torch.ones(size), 2).sum().item() for size in range(2, 8)]
    assert results == [2.0 * size for size in range(2, 8)]
    assert [code for code, _ in found] == ["compile_limit_reached"]
