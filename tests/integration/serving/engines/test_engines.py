"""The commands of engines in environments of their own, and the calls to SGLang."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.engines import EngineConfig, EngineRequestFailed, find_engine
from serving.engines.tokenizers import TokenizersDiffer
from tests.integration.serving.sglang_stand_in import SglangStandIn
from trainers.configs.engines import EngineOptions, ToolCallParser

SERVE = EngineConfig("org/model", "base", "127.0.0.1", 8001)


def flags(kind: str, serve: EngineConfig = SERVE) -> str:
    return " ".join(find_engine(kind).command(serve))


def adapter(folder: Path, template: str) -> str:
    """Create an adapter's folder with the tokenizer that it was trained with."""
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_options_become_the_flags_of_each_engine() -> None:
    options = EngineOptions(max_model_len=512, tensor_parallel=2, prefix_caching=False, max_batch_size=4)
    vllm = flags("vllm", replace(SERVE, options=options))
    assert "--max-model-len 512" in vllm
    assert "--tensor-parallel-size 2" in vllm
    assert "--no-enable-prefix-caching" in vllm
    assert "--max-num-seqs 4" in vllm
    sglang = flags("sglang", replace(SERVE, options=options))
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
        ("vllm", "--enable-auto-tool-choice --tool-call-parser llama3_json"),
        ("sglang", "--tool-call-parser llama3"),
    ],
)
def test_the_tool_call_parser_has_the_engine_s_name_for_it(kind: str, flag: str) -> None:
    options = EngineOptions(tool_call_parser=ToolCallParser.llama3)
    assert flag in flags(kind, replace(SERVE, options=options))
    assert "--tool-call-parser" not in flags(kind)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [("vllm", '"disable_any_whitespace": true'), ("sglang", "--constrained-json-disable-any-whitespace")],
)
def test_json_is_compact_by_default(kind: str, flag: str) -> None:
    assert flag in flags(kind)
    assert flag not in flags(kind, replace(SERVE, options=EngineOptions(compact_json=False)))


def test_a_rank_that_vllm_does_not_support_is_rounded_up() -> None:
    assert "--max-lora-rank 128" in flags("vllm", replace(SERVE, options=EngineOptions(max_adapter_rank=65)))


@pytest.mark.parametrize(("kind", "flag"), [("vllm", "--tokenizer"), ("sglang", "--tokenizer-path")])
def test_the_engine_uses_the_tokenizer_of_its_adapters(kind: str, flag: str, tmp_path: Path) -> None:
    adapters = {name: adapter(tmp_path / name, "mine") for name in ("one", "two")}
    assert f"{flag} {adapters['one']}" in flags(kind, replace(SERVE, adapters=adapters))


def test_the_base_s_own_tokenizer_is_not_passed(tmp_path: Path) -> None:
    base = adapter(tmp_path / "base", "shared")
    serve = EngineConfig(base, "base", "127.0.0.1", 8001, {"one": adapter(tmp_path / "one", "shared")})
    assert "--tokenizer" not in flags("vllm", serve)


def test_an_engine_uses_the_template_of_an_adapter_that_is_loaded_later(tmp_path: Path) -> None:
    later = replace(SERVE, template_from=adapter(tmp_path / "later", "own"))
    assert f"--tokenizer {later.template_from}" in flags("vllm", later)
    assert "--lora-modules" not in flags("vllm", later)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_adapters_with_different_templates_cannot_share_an_engine(kind: str, tmp_path: Path) -> None:
    adapters = {name: adapter(tmp_path / name, name) for name in ("one", "two")}
    with pytest.raises(TokenizersDiffer, match="'one' and 'two'"):
        flags(kind, replace(SERVE, adapters=adapters))


def test_the_hub_is_disabled_for_a_folder(tmp_path: Path) -> None:
    engine = find_engine("vllm")
    assert engine.environment(replace(SERVE, model=str(tmp_path)))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine.environment(SERVE)


def test_development_endpoints_are_enabled_on_loopback_only() -> None:
    sleepy = replace(SERVE, options=EngineOptions(sleep_mode=True))
    assert find_engine("vllm").environment(sleepy)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in find_engine("vllm").environment(SERVE)
    with pytest.raises(ValueError, match="loopback"):
        flags("vllm", replace(sleepy, host="10.0.0.5"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-model-len", "3"], "--max-model-len: Input should be greater than or equal to 16"),
        (
            ["--engine", "vllm", "--quantization", "int4"],
            "'int4' is not supported by vllm; choose one of awq, fp8",
        ),
        (
            ["--engine", "mlx", "--tool-call-parser", "qwen"],
            "is for vllm and sglang; mlx rejects requests with tools",
        ),
        (["--engine", "sglang", "--tool-call-parser", "phi4_mini"], "'phi4_mini' is not supported by sglang"),
        (["--engine", "vllm", "--program", "/no/vllm"], "/no/vllm cannot be started"),
    ],
)
def test_a_wrong_command_line_is_reported_in_one_sentence(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "serving", "--model", "org/model", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.fixture
def sglang() -> Iterator[SglangStandIn]:
    server = SglangStandIn()
    yield server
    server.close()


def test_sglang_s_adapters_are_listed_by_their_names_in_requests(sglang: SglangStandIn) -> None:
    engine = find_engine("sglang")
    engine.load_adapter(sglang.url, "one", "/adapters/one")
    assert engine.list_models(sglang.url) == ["base", "base:one"]
    assert engine.request_name("base", "one") == "base:one"
    engine.probe(sglang.url, "base:one")
    assert sglang.served[-1] == "one"


def test_sglang_s_response_to_an_unknown_name_is_not_trusted(sglang: SglangStandIn) -> None:
    engine = find_engine("sglang")
    for name in ("one", "base:one"):
        for call in (engine.probe, lambda url, name: engine.score(url, name, [1, 2])):
            with pytest.raises(EngineRequestFailed, match="is not loaded; this engine serves: base"):
                call(sglang.url, name)
    assert sglang.served == []


def test_sglang_rejects_a_name_in_use_and_an_unloaded_one(sglang: SglangStandIn) -> None:
    engine = find_engine("sglang")
    engine.load_adapter(sglang.url, "one", "/adapters/one")
    with pytest.raises(EngineRequestFailed, match="already loaded"):
        engine.load_adapter(sglang.url, "one", "/adapters/one")
    engine.unload_adapter(sglang.url, "one")
    with pytest.raises(EngineRequestFailed, match="not loaded"):
        engine.unload_adapter(sglang.url, "one")


def test_sglang_renders_chats_and_scores_tokens_of_an_adapter(sglang: SglangStandIn) -> None:
    engine = find_engine("sglang")
    engine.load_adapter(sglang.url, "one", "/adapters/one")
    assert engine.render(sglang.url, "base:one", [{"role": "user", "content": "hi"}]) == [104, 105]
    assert engine.score(sglang.url, "base:one", [7, 8, 9]) == [-0.5, -0.5]
    assert sglang.served[-1] == "one"
