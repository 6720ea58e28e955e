"""The engine `hf` in 4 and 8 bits, with adapters on top, and its limits."""

from pathlib import Path

import pytest
import torch

from serving.engines.decoding.adapters import AdapterNotLoadable
from serving.engines.decoding.base import ModelNotLoadable, ModelRunner
from serving.engines.decoding.sampling import SamplingParams
from serving.engines.decoding.sequence import SequenceParams, SequenceState
from serving.engines.decoding.served import ServedModel
from serving.engines.hf.model import load_runner, quantization_config
from trainers.configs.engines import EngineOptions, EngineQuantization

# PEFT and bitsandbytes call what transformers and torch are about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
IDS = list(range(20, 60))


def says(base: ModelRunner, served: ServedModel) -> torch.Tensor:
    ask = SequenceParams(served, IDS, SamplingParams(), 5, seed=0, prompt_logprobs=True)
    with torch.inference_mode():
        _, logits = base.prefill([SequenceState(ask, print)], every_position=True)
    result: torch.Tensor = logits[0].float().log_softmax(-1)
    return result


@pytest.fixture(scope="module")
def whole(tiny: Path) -> tuple[torch.Tensor, torch.Tensor]:
    base = load_runner(str(tiny / "base"), "base", EngineOptions())
    return says(base, base.served), says(base, base.load_adapter("alpha", str(tiny / "alpha")))


@pytest.mark.parametrize(("kind", "layer", "near"), [("int8", "Linear8bitLt", 1), ("int4", "Linear4bit", 5)])
def test_fewer_bits_move_base_and_adapter_a_little(
    tiny: Path, whole: tuple[torch.Tensor, torch.Tensor], kind: str, layer: str, near: float
) -> None:
    pytest.importorskip("bitsandbytes")
    base = load_runner(str(tiny / "base"), "base", EngineOptions(quantization=EngineQuantization(kind)))
    assert type(base.network.model.layers[0].self_attn.q_proj).__name__ == layer
    alone = says(base, base.served)
    assert 0 < (alone - whole[0]).abs().max() < near
    served = base.load_adapter("alpha", str(tiny / "alpha"))
    assert 0 < (says(base, served) - whole[1]).abs().max() < near
    base.unload_adapter(served)
    assert (says(base, base.served) - alone).abs().max() == 0


def test_apples_gpu_is_refused_with_the_engine_that_can() -> None:
    options = EngineOptions(quantization=EngineQuantization.int4)
    with pytest.raises(ModelNotLoadable, match="use the engine mlx"):
        quantization_config(options, torch.device("mps"))


def test_an_adapter_beyond_the_limit_is_refused_until_another_has_gone(tiny: Path) -> None:
    base = load_runner(str(tiny / "base"), "base", EngineOptions(max_adapters=1))
    first = base.load_adapter("alpha", str(tiny / "alpha"))
    with pytest.raises(AdapterNotLoadable, match="holds 1 adapters, its max_adapters; unload one first"):
        base.load_adapter("beta", str(tiny / "beta"))
    base.unload_adapter(first)
    base.load_adapter("beta", str(tiny / "beta"))
