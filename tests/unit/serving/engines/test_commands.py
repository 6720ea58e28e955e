"""The commands and environments of engines, from the options of a deployment."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.engines import EngineConfig, find_engine
from serving.engines.child_engine import latest_model_name
from serving.engines.tokenizers import TokenizersDiffer
from trainers.configs.engines import (
    EngineChoice,
    EngineKind,
    EngineOptions,
    EngineQuantization,
    EngineTask,
    Pooling,
    ToolCallParser,
)

CONFIG = EngineConfig("org/model", "base", "127.0.0.1", 8001)


def flags(kind: str, config: EngineConfig = CONFIG) -> str:
    return " ".join(find_engine(kind).command(config))


def adapter(folder: Path, template: str) -> str:
    """Create an adapter's folder with the tokenizer that it was trained with."""
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_options_become_the_flags_of_each_engine() -> None:
    options = EngineOptions(max_model_len=512, tensor_parallel=2, prefix_caching=False, max_batch_size=4)
    vllm = flags("vllm", replace(CONFIG, options=options))
    assert "--max-model-len 512" in vllm
    assert "--tensor-parallel-size 2" in vllm
    assert "--no-enable-prefix-caching" in vllm
    assert "--max-num-seqs 4" in vllm
    sglang = flags("sglang", replace(CONFIG, options=options))
    assert "--context-length 512" in sglang
    assert "--tp-size 2" in sglang
    assert "--disable-radix-cache" in sglang
    assert "--max-running-requests 4" in sglang


def test_sampling_defaults_of_the_model_folder_are_not_used() -> None:
    assert "--generation-config vllm" in flags("vllm")
    assert "--sampling-defaults openai" in flags("sglang")


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("vllm", '--runner pooling --convert embed --pooler-config {"pooling_type": "MEAN"}'),
        ("hf", "--task embed --pooling mean"),
    ],
)
def test_an_embedding_engine_gets_its_task_and_pooling_and_no_flags_of_generation(
    kind: str, flag: str
) -> None:
    embedding = flags(kind, replace(CONFIG, task=EngineTask.embed, pooling=Pooling.mean))
    assert flag in embedding
    assert not any(one in embedding for one in ("lora", "tool", "structured", "generation-config", "prefix"))
    assert flag.split()[0] not in flags(kind)
    assert "--is-embedding" in flags("sglang", replace(CONFIG, task=EngineTask.embed))


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("vllm", "--enable-auto-tool-choice --tool-call-parser llama3_json --tool-strict-level parameter"),
        ("sglang", "--tool-call-parser llama3"),
    ],
)
def test_the_tool_call_parser_has_the_engine_s_name_for_it(kind: str, flag: str) -> None:
    options = EngineOptions(tool_call_parser=ToolCallParser.llama3)
    assert flag in flags(kind, replace(CONFIG, options=options))
    assert "--tool-call-parser" not in flags(kind)


@pytest.mark.parametrize(
    ("template", "flag"),
    [
        ("<tool_call>\n<function=", "--enable-auto-tool-choice --tool-call-parser qwen3_coder"),
        ([{"name": "default", "template": ""}, {"name": "tool_use", "template": "<tool_call>"}], "hermes"),
        ("<|tool_calls_section_begin|>", None),
        ("{{ messages }}", None),
    ],
)
def test_vllm_gets_the_parser_of_the_family_that_the_template_shows(
    template: Any, flag: str | None, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    found = flags("vllm", replace(CONFIG, model=str(tmp_path)))
    assert (flag or "--dtype") in found
    assert ("--tool-call-parser" in found) == (flag is not None)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [("vllm", '"disable_any_whitespace": true'), ("sglang", "--constrained-json-disable-any-whitespace")],
)
def test_json_is_compact_by_default(kind: str, flag: str) -> None:
    assert flag in flags(kind)
    assert flag not in flags(kind, replace(CONFIG, options=EngineOptions(compact_json=False)))


def test_a_rank_that_vllm_does_not_support_is_rounded_up() -> None:
    assert "--max-lora-rank 128" in flags("vllm", replace(CONFIG, options=EngineOptions(max_adapter_rank=65)))


@pytest.mark.parametrize(("kind", "flag"), [("vllm", "--tokenizer"), ("sglang", "--tokenizer-path")])
def test_the_engine_uses_the_tokenizer_of_its_adapters(kind: str, flag: str, tmp_path: Path) -> None:
    adapters = {name: adapter(tmp_path / name, "mine") for name in ("one", "two")}
    assert f"{flag} {adapters['one']}" in flags(kind, replace(CONFIG, adapters=adapters))


def test_the_base_s_own_tokenizer_is_not_passed(tmp_path: Path) -> None:
    base = adapter(tmp_path / "base", "shared")
    config = EngineConfig(base, "base", "127.0.0.1", 8001, {"one": adapter(tmp_path / "one", "shared")})
    assert "--tokenizer" not in flags("vllm", config)


def test_an_engine_uses_the_template_of_an_adapter_that_is_loaded_later(tmp_path: Path) -> None:
    later = replace(CONFIG, template_from=adapter(tmp_path / "later", "own"))
    assert f"--tokenizer {later.template_from}" in flags("vllm", later)
    assert "--lora-modules" not in flags("vllm", later)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_adapters_with_different_templates_cannot_share_an_engine(kind: str, tmp_path: Path) -> None:
    adapters = {name: adapter(tmp_path / name, name) for name in ("one", "two")}
    with pytest.raises(TokenizersDiffer, match="'one' and 'two'"):
        flags(kind, replace(CONFIG, adapters=adapters))


@pytest.mark.parametrize("kind", EngineKind)
def test_no_engine_reaches_the_hub(kind: EngineKind) -> None:
    environment = find_engine(kind).environment(CONFIG)
    assert environment.items() >= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}.items()


def test_development_endpoints_are_enabled_on_loopback_only() -> None:
    sleepy = replace(CONFIG, options=EngineOptions(sleep_mode=True))
    assert find_engine("vllm").environment(sleepy)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in find_engine("vllm").environment(CONFIG)
    with pytest.raises(ValueError, match="loopback"):
        flags("vllm", replace(sleepy, host="10.0.0.5"))


def test_our_engines_receive_adapters_as_name_and_path() -> None:
    command = find_engine("hf").command(replace(CONFIG, adapters={"a": "/x=y"}))
    assert command[1:3] == ["-m", "serving.engines.hf"]
    assert "a=/x=y" in command


def test_an_unknown_engine_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose one of: hf"):
        find_engine("tgi")


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "::", "0", "0x0", "::ffff:0.0.0.0"])
def test_a_public_address_is_rejected_with_a_hint(host: str) -> None:
    with pytest.raises(ValueError, match=r"python -m serving\.gateway"):
        replace(CONFIG, host=host)


def test_the_latest_adapter_is_requested_by_the_name_that_its_engine_expects() -> None:
    config = replace(CONFIG, adapters={"one": "/1", "two": "/2"})
    assert latest_model_name(find_engine("hf"), config) == "two"
    assert latest_model_name(find_engine("sglang"), config) == "base:two"
    assert latest_model_name(find_engine("sglang"), CONFIG) == "base"


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_engine_without_slots_for_adapters_reserves_no_memory_for_them(kind: str) -> None:
    assert "--enable-lora" in flags(kind)
    assert "lora" not in flags(kind, replace(CONFIG, options=EngineOptions(max_adapters=0)))


def test_sglang_chooses_its_share_of_the_memory_unless_one_is_set() -> None:
    assert "--mem-fraction-static" not in flags("sglang")
    assert "--gpu-memory-utilization 0.9" in flags("vllm")
    options = EngineOptions(memory_share=0.5)
    assert "--mem-fraction-static 0.5" in flags("sglang", replace(CONFIG, options=options))
    assert "--gpu-memory-utilization 0.5" in flags("vllm", replace(CONFIG, options=options))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_quantization_that_the_engine_would_ignore_is_refused_even_if_it_is_stored(kind: str) -> None:
    options = EngineOptions(quantization=EngineQuantization.int8)
    with pytest.raises(ValueError, match=r"'int8' is not supported by .*; choose one of awq, fp8, gptq"):
        flags(kind, replace(CONFIG, options=options))
    with pytest.raises(ValueError, match="'int8' is not supported"):
        EngineChoice.model_validate({"engine": kind, "options": {"quantization": "int8"}})
