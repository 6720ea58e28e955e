"""The engine `mlx` computes the same as transformers and PEFT, or reports why it cannot."""

import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.engines.decoding.adapters import AdapterNotLoadable
from serving.engines.decoding.base import ModelNotLoadable, ModelRunner
from serving.engines.decoding.sampling import SamplingParams
from serving.engines.decoding.sequence import SequenceParams, SequenceState
from serving.engines.decoding.served import ServedModel
from tests.integration.serving.conftest import BASE_SAYS, Server
from trainers.configs.engines import EngineOptions, EngineQuantization

load_runner = pytest.importorskip("serving.engines.mlx.model").load_runner
# PEFT uses a deprecated attribute of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

# Maximum difference of a log-probability in fp32; the values themselves range over ten nats.
TOLERANCE = 2e-4
IDS = torch.randint(3, 280, (24,), generator=torch.Generator().manual_seed(0)).tolist()
SHAPE: dict[str, Any] = {
    "vocab_size": 280,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LONG = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
MODELS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SHAPE, rope_parameters={**ROPE, "rope_theta": 500.0}),
    "qwen2": transformers.Qwen2Config(**SHAPE, rope_parameters=ROPE, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SHAPE, rope_parameters=ROPE, head_dim=16),
    "mistral": transformers.MistralConfig(**SHAPE, rope_parameters=ROPE, sliding_window=32),
    "gemma3": transformers.Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 6}, head_dim=16, sliding_window=16, query_pre_attn_scalar=16
    ),
    # Their GELU is the approximation by tanh, where mlx-lm has the exact one.
    "gemma": transformers.GemmaConfig(**SHAPE, rope_parameters=ROPE, head_dim=16),
    "starcoder2": transformers.Starcoder2Config(**SHAPE, rope_parameters=ROPE),
    "phi3": transformers.Phi3Config(
        **SHAPE,
        rope_parameters={**LONG, "original_max_position_embeddings": 64},
        original_max_position_embeddings=64,
    ),
}
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False}


def save_model(folder: Path, tiny: Path, name: str) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny / "base").save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, **options: Any) -> Any:
    """Save an adapter with random weights, and return PEFT's model."""
    torch.manual_seed(1)
    warnings.simplefilter("ignore", UserWarning)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **(LORA | options))).eval()
    tuned.save_pretrained(folder)
    return tuned


def load(folder: Path, **options: Any) -> ModelRunner:
    base: ModelRunner = load_runner(str(folder), "base", EngineOptions(**options))
    return base


def engine_logprobs(base: ModelRunner, served: ServedModel | None = None) -> torch.Tensor:
    ask = SequenceParams(served or base.served, IDS, SamplingParams(), 5, seed=0, prompt_logprobs=True)
    _, logits = base.prefill([SequenceState(ask, print)], every_position=True)
    return logits[0].log_softmax(-1)


def torch_logprobs(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = network(input_ids=torch.tensor([IDS])).logits[0]
    return logits.log_softmax(-1)


def max_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", list(MODELS))
def test_base_and_adapter_equal_those_of_transformers_and_peft(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = save_model(tmp_path / "base", tiny, name)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = load(folder)
    assert max_difference(engine_logprobs(base), torch_logprobs(network)) < TOLERANCE
    tuned = save_adapter(tmp_path / "lora", folder)
    served = base.load_adapter("tuned", str(tmp_path / "lora"))
    assert max_difference(engine_logprobs(base, served), torch_logprobs(tuned)) < TOLERANCE
    assert max_difference(engine_logprobs(base), torch_logprobs(tuned)) > 0.1


@pytest.mark.parametrize("place", ["top", "inside"])
def test_rope_theta_is_read_in_either_place(tiny: Path, tmp_path: Path, place: str) -> None:
    folder = save_model(tmp_path, tiny, "qwen2")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    if place == "top":
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    else:
        assert config["rope_parameters"]["rope_theta"] == 10_000.0
    (folder / "config.json").write_text(json.dumps(config))
    before = (folder / "config.json").read_bytes()
    assert max_difference(engine_logprobs(load(folder)), torch_logprobs(network)) < TOLERANCE
    assert (folder / "config.json").read_bytes() == before


def test_tied_embeddings_default_to_those_of_transformers(tiny: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path, tiny, "llama")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert max_difference(engine_logprobs(load(folder)), torch_logprobs(network)) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 40}},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    ],
    ids=str,
)
def test_every_kind_of_scale_equals_that_of_peft(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = save_model(tmp_path / "base", tiny, "llama")
    tuned = save_adapter(tmp_path / "lora", folder, **options)
    base = load(folder)
    served = base.load_adapter("tuned", str(tmp_path / "lora"))
    assert max_difference(engine_logprobs(base, served), torch_logprobs(tuned)) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"lora_bias": True}, "lora_bias"),
        ({"r": 65}, "max_adapter_rank"),
    ],
)
def test_an_adapter_that_is_not_fully_supported_is_rejected(
    tiny: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = save_model(tmp_path / "base", tiny, "llama")
    save_adapter(tmp_path / "lora", folder, **options)
    base = load(folder)
    before = engine_logprobs(base)
    with pytest.raises(AdapterNotLoadable, match=message):
        base.load_adapter("tuned", str(tmp_path / "lora"))
    assert max_difference(engine_logprobs(base), before) == 0


def test_a_context_that_mlx_lm_computes_differently_is_rejected(tiny: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path, tiny, "mistral")
    assert load(folder).max_model_len == 32
    with pytest.raises(ModelNotLoadable, match="32 tokens for which"):
        load(folder, max_model_len=64)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            transformers.LlamaConfig(**SHAPE, hidden_act="gelu"),
            "gelu', and mlx-lm computes 'silu'",
        ),
        (transformers.GlmConfig(**SHAPE, head_dim=16), "rotates whole heads"),
    ],
    ids=["activation", "rotation"],
)
def test_a_network_that_mlx_lm_computes_differently_is_rejected(
    config: Any, message: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "other", config)
    with pytest.raises(ModelNotLoadable, match=message):
        load(save_model(tmp_path, tiny, "other"))


@pytest.mark.parametrize(("kind", "max_change"), [("int8", 0.5), ("int4", 5.0)])
def test_quantized_weights_differ_a_little_and_accept_adapters(
    tiny: Path, kind: str, max_change: float
) -> None:
    whole, packed = load(tiny / "base"), load(tiny / "base", quantization=EngineQuantization(kind))
    assert 0 < max_difference(engine_logprobs(packed), engine_logprobs(whole)) < max_change
    served = packed.load_adapter("alpha", str(tiny / "alpha"))
    assert max_difference(engine_logprobs(packed, served), engine_logprobs(packed)) > 1


def test_adapters_are_loaded_and_unloaded_at_run_time(mlx: Server, tiny: Path) -> None:
    request = {"lora_name": "third", "lora_path": str(tiny / "beta")}
    assert mlx.post("/v1/load_lora_adapter", request)[0] == 200
    assert (mlx.chat("base"), mlx.chat("alpha")[:5], mlx.chat("third")[:4]) == (BASE_SAYS, "alpha", "beta")
    status, response = mlx.post("/v1/load_lora_adapter", {**request, "lora_name": "fourth"})
    assert (status, "max_adapters" in response["error"]["message"]) == (400, True)
    assert mlx.post("/v1/unload_lora_adapter", request)[0] == 200
    assert (
        mlx.post("/v1/chat/completions", {"model": "third", "messages": [{"role": "user", "content": "hi"}]})[
            0
        ]
        == 404
    )


def test_both_engines_score_and_tokenize_equally(mlx: Server, engine: Server) -> None:
    chat = {"model": "alpha", "messages": [{"role": "user", "content": "안녕"}]}
    tokens = mlx.post("/tokenize", chat)[1]["tokens"]
    assert engine.post("/tokenize", chat)[1]["tokens"] == tokens
    body = {"model": "alpha", "prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 0}
    scores = [
        server.post("/v1/completions", body)[1]["choices"][0]["logprobs"]["token_logprobs"][1:]
        for server in (mlx, engine)
    ]
    assert len(scores[0]) == len(tokens) - 1
    assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE)


def test_parallel_requests_of_many_lengths_equal_single_ones(mlx: Server) -> None:
    asks = [(model, "x " * n, 10 + 9 * n) for n in range(1, 8) for model in ("base", "alpha")]
    alone = [mlx.chat(model, question=text, max_tokens=most) for model, text, most in asks]
    with ThreadPoolExecutor(len(asks)) as pool:
        together = list(pool.map(lambda ask: mlx.chat(ask[0], question=ask[1], max_tokens=ask[2]), asks))
    assert together == alone


def test_an_unsupported_architecture_is_rejected(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny / "base", tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ModelNotLoadable, match="is a bert, which mlx-lm does not have"):
        load(folder)
