"""Goal: what an architecture does not support is found on an empty model, and the rest trains and is served.

The whole table is the benchmark tests/benchmarks/trainers/architectures.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.architectures import ARCHITECTURES, find_architecture, write_model
from tests.benchmarks.trainers.architectures import Row, try_architecture
from trainers.configs import AdaptedModel, parse_stage
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import Attention, TrainingConfig
from trainers.modeling.architecture import explain_hf_refusal, find_model_class
from trainers.modeling.attention.choice import AttentionUnsupported, pick_attention
from trainers.modeling.load import ModelUnsupported, TokenizerIncomplete, load_tokenizer
from trainers.preflight.memory.estimate import choose_recomputation, estimate_memory
from trainers.training.model_proof import TargetModulesMissing, TuningUnsupported, prove_model
from trainers.training.packing_proof import PackingUnproven

CPU = torch.device("cpu")
# The most different ones: two without torch's attention, one with transposed layers, one without attention.
DIFFERENT = ("gpt-oss", "Gemma 2", "GPT-2", "Mamba")


@pytest.fixture(scope="module")
def models(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that writes the tiny model of an architecture and returns its folder."""
    root = tmp_path_factory.mktemp("architectures")

    def write(name: str) -> str:
        folder = root / name.replace(" ", "-")
        if not folder.exists():
            write_model(find_architecture(name), starter, folder)
        return str(folder)

    return write


def stage(base: str, **settings: Any) -> TrainingConfig:
    config = parse_stage({"stage": "sft", "base": base, "dataset": "rows.jsonl", "queue": "cpu", **settings})
    assert isinstance(config, TrainingConfig)
    return config


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_model_that_is_accepted_trains_merges_and_scores_the_same_when_loaded_again(
    name: str, starter: Path, tmp_path: Path
) -> None:
    row = try_architecture(find_architecture(name), starter, tmp_path, serve=False)
    assert (row.dry_run, row.train, row.merge) == ("accepted", "ok", "ok")
    assert row.base_score == 0
    assert row.adapter_score is not None and row.adapter_score >= 0.5
    assert row.merged_score == row.adapter_score


@pytest.mark.slow
@pytest.mark.parametrize("name", [architecture.name for architecture in ARCHITECTURES])
def test_no_architecture_is_accepted_and_fails(name: str, starter: Path, tmp_path: Path) -> None:
    assert try_architecture(find_architecture(name), starter, tmp_path).contradiction is None


def test_a_row_that_is_accepted_and_fails_contradicts_itself() -> None:
    assert Row("A", "a", dry_run="accepted", train="refused").contradiction
    assert Row("A", "a", dry_run="accepted", train="ok", merge="ok", deploy_verdict="accepted").contradiction
    assert Row("A", "a", dry_run="refused", train="refused").contradiction is None


@pytest.mark.parametrize(
    ("model_type", "expected"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")]
)
def test_auto_is_the_attention_that_the_architecture_has(model_type: str, expected: str) -> None:
    assert pick_attention(Attention.auto, CPU, AutoConfig.for_model(model_type)) == expected


def test_attention_that_the_architecture_lacks_is_named_with_what_it_has() -> None:
    with pytest.raises(AttentionUnsupported, match=r"sdpa, which the architecture gemma2 .* it has eager"):
        pick_attention(Attention.sdpa, CPU, AutoConfig.for_model("gemma2"))


@pytest.mark.parametrize("names", [["q_proj", "v_proj"], ["qkv_proj", "v_porj"]], ids=str)
def test_layers_that_do_not_exist_are_named_with_those_that_do(
    names: list[str], models: Callable[[str], str]
) -> None:
    config = stage(models("Phi 3"), tuning={"target_modules": names})
    expected = f"named {', '.join(sorted(set(names) - {'qkv_proj'}))} "
    with pytest.raises(TargetModulesMissing, match=expected) as error:
        prove_model(config)
    assert "Its layers are down_proj, gate_up_proj, o_proj, qkv_proj." in error.value.message


@pytest.mark.parametrize("names", [["q_proj", "w1", "w2", "w3"], ["self_attn.q_proj"], "all-linear"], ids=str)
def test_layers_are_found_by_path_and_as_fused_experts(names: Any, models: Callable[[str], str]) -> None:
    prove_model(stage(models("Mixtral"), tuning={"target_modules": names}))


def test_layers_that_an_adapter_would_break_are_refused(models: Callable[[str], str]) -> None:
    with pytest.raises(TuningUnsupported, match="'out_proj' is incompatible"):
        prove_model(stage(models("Mamba"), tuning={"target_modules": ["in_proj", "out_proj"]}))


@pytest.mark.parametrize("name", ["gpt-oss", "Qwen 3.5", "LFM 2", "Granite 4 hybrid"])
def test_packing_is_refused_where_rows_could_mix(name: str, models: Callable[[str], str]) -> None:
    with pytest.raises(PackingUnproven, match=r"(do not|could not be proved to) keep the rows"):
        prove_model(stage(models(name), packing=True))


def test_memory_that_cannot_be_estimated_stops_nothing(models: Callable[[str], str]) -> None:
    mamba, gpt2 = stage(models("Mamba")), stage(models("GPT-2"))
    assert estimate_memory(mamba, [], 64) is None
    (host,) = (estimate_memory(gpt2, [], 64) or {})["hosts"]
    assert host["needed_bytes"] > 0
    assert choose_recomputation(mamba, HostMemory(worker="small", memory_bytes=1), 64) is None


def test_a_tokenizer_that_neither_ends_nor_pads_is_named(starter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(starter, base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name not in ("eos_token", "pad_token")})
    )
    with pytest.raises(TokenizerIncomplete, match="neither eos_token nor pad_token"):
        load_tokenizer(str(base))


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"model_type": "starship"}, "not known to this version"), ({"model_type": "t5"}, "not a causal")],
)
def test_a_model_that_does_not_complete_text_is_named(
    changes: dict[str, Any], what: str, starter: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(starter, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelUnsupported, match=what):
        prove_model(stage(str(base)))


@pytest.mark.parametrize(
    "extra", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}], ids=str
)
def test_an_adapter_whose_parts_would_not_train_is_refused(
    extra: dict[str, Any], adapted: dict[str, str], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(adapted["adapter"], adapter)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    model = AdaptedModel(base=adapted["base"], adapter=str(adapter))
    with pytest.raises(ModelUnsupported, match="cannot be trained further"):
        prove_model(stage("x").model_copy(update={"base": model}))


@pytest.mark.parametrize(
    ("name", "reason"), [("Llama", None), ("Mamba", "linear_attention"), ("Qwen 3.5", "linear_attention")]
)
def test_the_engine_hf_says_which_layers_it_cannot_batch(
    name: str, reason: str | None, models: Callable[[str], str]
) -> None:
    found = explain_hf_refusal(AutoConfig.from_pretrained(models(name)), None)
    assert found is None if reason is None else reason in str(found)


def test_the_engine_hf_serves_multimodal_models_also_if_they_cannot_be_trained() -> None:
    config = AutoConfig.for_model("gemma3n")
    assert explain_hf_refusal(config, 1000) is None
    with pytest.raises(ModelUnsupported, match="no test shows that this can be trained"):
        find_model_class(config)
