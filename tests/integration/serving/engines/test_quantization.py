"""The engine `hf` in 4 and 8 bits, with adapters, and its limits."""

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

# PEFT and bitsandbytes use deprecated parts of transformers and torch.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
IDS = list(range(20, 60))


def logprobs(base: ModelRunner, served: ServedModel) -> torch.Tensor:
    ask = SequenceParams(served, IDS, SamplingParams(), 5, seed=0, prompt_logprobs=True)
    with torch.inference_mode():
        _, logits = base.prefill([SequenceState(ask, print)], every_position=True)
    result: torch.Tensor = logits[0].float().log_softmax(-1)
    return result


@pytest.fixture(scope="module")
def unquantized(tiny: Path) -> tuple[torch.Tensor, torch.Tensor]:
    base = load_runner(str(tiny / "base"), "base", EngineOptions())
    return logprobs(base, base.served), logprobs(base, base.load_adapter("alpha", str(tiny / "alpha")))


@pytest.mark.parametrize(
    ("kind", "layer", "max_change"), [("int8", "Linear8bitLt", 1), ("int4", "Linear4bit", 5)]
)
def test_quantized_base_and_adapter_differ_a_little(
    tiny: Path, unquantized: tuple[torch.Tensor, torch.Tensor], kind: str, layer: str, max_change: float
) -> None:
    pytest.importorskip("bitsandbytes")
    base = load_runner(str(tiny / "base"), "base", EngineOptions(quantization=EngineQuantization(kind)))
    assert type(base.network.model.layers[0].self_attn.q_proj).__name__ == layer
    alone = logprobs(base, base.served)
    assert 0 < (alone - unquantized[0]).abs().max() < max_change
    served = base.load_adapter("alpha", str(tiny / "alpha"))
    assert 0 < (logprobs(base, served) - unquantized[1]).abs().max() < max_change
    base.unload_adapter(served)
    assert (logprobs(base, base.served) - alone).abs().max() == 0


def test_apple_s_gpu_is_rejected_with_a_hint() -> None:
    options = EngineOptions(quantization=EngineQuantization.int4)
    with pytest.raises(ModelNotLoadable, match="use the engine mlx"):
        quantization_config(options, torch.device("mps"))


def test_an_adapter_beyond_the_limit_is_rejected_until_another_is_unloaded(tiny: Path) -> None:
    base = load_runner(str(tiny / "base"), "base", EngineOptions(max_adapters=1))
    first = base.load_adapter("alpha", str(tiny / "alpha"))
    with pytest.raises(AdapterNotLoadable, match="already has 1 of max_adapters=1"):
        base.load_adapter("beta", str(tiny / "beta"))
    base.unload_adapter(first)
    base.load_adapter("beta", str(tiny / "beta"))
