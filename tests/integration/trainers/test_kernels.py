"""Goal: kernels of a folder compute a model's layers in training, and wrong ones never do.

Method: packages of kernels in plain torch, so that a CPU runs them; each is written into a folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from tests.integration.trainers.conftest import events, losses
from tests.integration.trainers.stages import run_stage
from trainers.modeling.fused.kernel_folder import KernelsUnsuitable
from trainers.modeling.fused.kernels import prove_replacement
from trainers.modeling.fused.small_model import build_small_model
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DeviceUnavailable

Stage = dict[str, Any]
Write = Callable[[str], str]
NORM = """
import torch

calls = 0


class RMSNorm(torch.nn.Module):
    def forward(self, x):
        global calls
        calls += 1
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(x.dtype)
"""
MLP = """
class SwiGLUMLP(torch.nn.Module):
    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))
"""
ROTARY = """
def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def rotate(x):
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-right, left), dim=-1) * sin

    return rotate(q), rotate(k)
"""
WRONG = {
    "no weight": NORM.replace("self.weight *", "1 *"),
    "no epsilon": NORM.replace("self.variance_epsilon", "1"),
    "another activation": NORM + MLP.replace("torch.sigmoid(gate)", "torch.sigmoid(1.1 * gate)"),
    "no gradient": NORM.replace("(wide * scale)", "(wide.detach() * scale)"),
    "other positions": NORM + ROTARY.replace("(-right, left)", "(right, left)"),
}


@pytest.fixture
def write_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a package; the function for positions, which belongs to a module, is put back afterwards."""

    def write(source: str) -> str:
        folder = tmp_path / "kernels"
        folder.mkdir()
        (folder / "__init__.py").write_text("from . import layers\n")
        (folder / "layers.py").write_text(source)
        return str(folder)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    return write


@pytest.fixture
def sft(starter: Path, training_rows: str) -> Stage:
    short = {"max_steps": 3, "batch_size": 4, "log_every_steps": 1, "learning_rate": 1e-2, "queue": "cpu"}
    return {"stage": "sft", "base": str(starter), "dataset": training_rows, "preflight": "off", **short}


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_run_with_kernels_has_the_losses_and_files_of_any_other(
    sft: Stage, tuning: str, write_kernels: Write, tmp_path: Path
) -> None:
    stage = sft | {"tuning": {"method": tuning}, "activation_checkpointing": True}
    run_stage(stage, tmp_path / "plain")
    kernels = {"kernels": {"folder": write_kernels(NORM + MLP + ROTARY)}}
    run_stage(stage | kernels, tmp_path / "fused")
    assert losses(tmp_path / "fused") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    names = [sorted(p.name for p in (tmp_path / run / "model").iterdir()) for run in ("plain", "fused")]
    assert names[0] == names[1]
    (notice,) = [e for e in events(tmp_path / "fused", "warning") if e["code"] == "kernels_used"]
    assert "× RMSNorm" in notice["message"] and "× apply_rotary_pos_emb" in notice["message"]
    assert modeling_llama.apply_rotary_pos_emb.__module__.startswith("tunesmith_kernels")


@pytest.mark.parametrize("source", WRONG.values(), ids=WRONG)
def test_kernels_that_compute_something_else_train_nothing(
    sft: Stage, source: str, write_kernels: Write, tmp_path: Path
) -> None:
    stage = sft | {"kernels": {"folder": write_kernels(source)}}
    with pytest.raises(
        KernelsUnsuitable, match=r"do not compute what the layers of llama compute: .* differs"
    ):
        run_stage(stage, tmp_path / "run")
    assert not losses(tmp_path / "run")


def test_kernels_that_pass_adapters_by_train_nothing(
    sft: Stage, write_kernels: Write, tmp_path: Path
) -> None:
    """They compute the same as layers without adapters."""
    source = "import torch\n" + MLP.replace(
        "self.up_proj(x)", "torch.nn.functional.linear(x, self.up_proj.weight)"
    )
    with pytest.raises(KernelsUnsuitable, match="read the weights of up_proj without calling"):
        run_stage(sft | {"kernels": {"folder": write_kernels(source)}}, tmp_path / "run")
    assert not losses(tmp_path / "run")


def test_kernels_can_be_compared_on_a_device_for_models_of_70_billion_parameters() -> None:
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    config = LlamaConfig(**sizes, num_attention_heads=64, num_key_value_heads=8)
    # Stands for a GPU, and takes no memory.
    small = build_small_model(config, "eager", torch.device("meta"), torch.bfloat16)
    assert small is not None and len(small.model.layers) == 2


def test_kernels_that_replace_no_layer_are_refused() -> None:
    """liger-kernel, for one, has no norms, SwiGLU or positions for Nemotron."""
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    with pytest.raises(KernelsUnsuitable, match="replace no layer of the architecture llama"):
        prove_replacement(lambda _: {"layers": 0}, config, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "have none of RMSNorm, SwiGLUMLP and apply_rotary_pos_emb"),
        ("import a_package_of_nobody", "cannot be loaded: No module named 'a_package_of_nobody'"),
        ("def broken(:", "cannot be loaded: invalid syntax"),
    ],
)
def test_kernels_that_cannot_be_used_name_the_cause(
    sft: Stage, source: str, message: str, write_kernels: Write, tmp_path: Path
) -> None:
    with pytest.raises(KernelsUnsuitable, match=message):
        run_stage(sft | {"kernels": {"folder": write_kernels(source)}}, tmp_path / "run")


def test_triton_kernels_are_refused_on_a_cpu(sft: Stage, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="need a GPU, but the stage runs on cpu"):
        run_stage(sft | {"kernels": "liger"}, tmp_path / "run")
    assert files.read_result(tmp_path / "run") is None
