"""The engine `mlx` gives what transformers and PEFT give, or says why it cannot."""

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
# PEFT asks transformers in a way that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

# Largest difference of a log-probability in fp32; the values themselves spread over ten.
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
    "phi3": transformers.Phi3Config(
        **SHAPE,
        rope_parameters={**LONG, "original_max_position_embeddings": 64},
        original_max_position_embeddings=64,
    ),
}
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False}


def written(folder: Path, tiny: Path, name: str) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny / "base").save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, **options: Any) -> Any:
    """An adapter of random weights, saved; answers PEFT's model."""
    torch.manual_seed(1)
    warnings.simplefilter("ignore", UserWarning)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **(LORA | options))).eval()
    tuned.save_pretrained(folder)
    return tuned


def opened(folder: Path, **options: Any) -> ModelRunner:
    base: ModelRunner = load_runner(str(folder), "base", EngineOptions(**options))
    return base


def engine_says(base: ModelRunner, served: ServedModel | None = None) -> torch.Tensor:
    ask = SequenceParams(served or base.served, IDS, SamplingParams(), 5, seed=0, prompt_logprobs=True)
    _, logits = base.prefill([SequenceState(ask, print)], every_position=True)
    return logits[0].log_softmax(-1)


def torch_says(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = network(input_ids=torch.tensor([IDS])).logits[0]
    return logits.log_softmax(-1)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", list(MODELS))
def test_base_and_adapter_give_what_transformers_and_peft_give(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "base", tiny, name)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = opened(folder)
    assert apart(engine_says(base), torch_says(network)) < TOLERANCE
    tuned = adapter(tmp_path / "lora", folder)
    served = base.load_adapter("tuned", str(tmp_path / "lora"))
    assert apart(engine_says(base, served), torch_says(tuned)) < TOLERANCE
    assert apart(engine_says(base), torch_says(tuned)) > 0.1


@pytest.mark.parametrize("place", ["top", "inside"])
def test_rope_theta_is_read_wherever_it_stands(tiny: Path, tmp_path: Path, place: str) -> None:
    folder = written(tmp_path, tiny, "qwen2")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    if place == "top":
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    else:
        assert config["rope_parameters"]["rope_theta"] == 10_000.0
    (folder / "config.json").write_text(json.dumps(config))
    before = (folder / "config.json").read_bytes()
    assert apart(engine_says(opened(folder)), torch_says(network)) < TOLERANCE
    assert (folder / "config.json").read_bytes() == before


def test_a_tie_that_the_file_does_not_tell_is_that_of_transformers(tiny: Path, tmp_path: Path) -> None:
    folder = written(tmp_path, tiny, "llama")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert apart(engine_says(opened(folder)), torch_says(network)) < TOLERANCE


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
def test_every_kind_of_scale_is_that_of_peft(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = written(tmp_path / "base", tiny, "llama")
    tuned = adapter(tmp_path / "lora", folder, **options)
    base = opened(folder)
    served = base.load_adapter("tuned", str(tmp_path / "lora"))
    assert apart(engine_says(base, served), torch_says(tuned)) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"lora_bias": True}, "lora_bias"),
        ({"r": 65}, "max_adapter_rank"),
    ],
)
def test_what_would_be_half_honoured_is_refused(
    tiny: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    folder = written(tmp_path / "base", tiny, "llama")
    adapter(tmp_path / "lora", folder, **options)
    base = opened(folder)
    before = engine_says(base)
    with pytest.raises(AdapterNotLoadable, match=told):
        base.load_adapter("tuned", str(tmp_path / "lora"))
    assert apart(engine_says(base), before) == 0


def test_a_context_beyond_what_mlx_lm_computes_rightly_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = written(tmp_path, tiny, "mistral")
    assert opened(folder).max_model_len == 32
    with pytest.raises(ModelNotLoadable, match="32 tokens within which"):
        opened(folder, max_model_len=64)


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.5), ("int4", 5.0)])
def test_fewer_bits_move_the_answers_a_little_and_take_adapters(tiny: Path, kind: str, near: float) -> None:
    whole, packed = opened(tiny / "base"), opened(tiny / "base", quantization=EngineQuantization(kind))
    assert 0 < apart(engine_says(packed), engine_says(whole)) < near
    served = packed.load_adapter("alpha", str(tiny / "alpha"))
    assert apart(engine_says(packed, served), engine_says(packed)) > 1


def test_adapters_come_and_go_at_run_time(mlx: Server, tiny: Path) -> None:
    asked = {"lora_name": "third", "lora_path": str(tiny / "beta")}
    assert mlx.post("/v1/load_lora_adapter", asked)[0] == 200
    assert (mlx.chat("base"), mlx.chat("alpha")[:5], mlx.chat("third")[:4]) == (BASE_SAYS, "alpha", "beta")
    status, answer = mlx.post("/v1/load_lora_adapter", {**asked, "lora_name": "fourth"})
    assert (status, "max_adapters" in answer["error"]["message"]) == (400, True)
    assert mlx.post("/v1/unload_lora_adapter", asked)[0] == 200
    assert mlx.post("/v1/chat/completions", {"model": "third", "messages": [{"role": "user"}]})[0] == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "paint"}}]),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "paint", "schema": {}}}),
    ],
)
def test_what_needs_guided_decoding_is_refused_by_name(mlx: Server, field: str, value: Any) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "hello"}], field: value}
    status, answer = mlx.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, field)


def test_both_engines_score_and_tokenize_alike(mlx: Server, engine: Server) -> None:
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


def test_requests_of_many_lengths_together_answer_as_if_alone(mlx: Server) -> None:
    asks = [(model, "x " * n, 10 + 9 * n) for n in range(1, 8) for model in ("base", "alpha")]
    alone = [mlx.chat(model, question=text, max_tokens=most) for model, text, most in asks]
    with ThreadPoolExecutor(len(asks)) as pool:
        together = list(pool.map(lambda ask: mlx.chat(ask[0], question=ask[1], max_tokens=ask[2]), asks))
    assert together == alone


def test_a_model_that_is_no_model_ends_the_engine_clearly(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny / "base", tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ModelNotLoadable, match="is a bert, which mlx-lm does not have"):
        opened(folder)
