"""Wrong command lines, and the calls to SGLang."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.engines import EngineRequestFailed, find_engine
from tests.integration.serving.sglang_stand_in import SglangStandIn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-model-len", "3"], "--max-model-len: Input should be greater than or equal to 16"),
        (
            ["--engine", "vllm", "--quantization", "int4"],
            "'int4' is not supported by vllm; choose one of awq, fp8",
        ),
        (
            ["--engine", "sglang", "--tool-call-parser", "phi4_mini"],
            "'phi4_mini' is not supported by sglang; choose one of deepseek_v3, deepseek_v31",
        ),
        (["--engine", "vllm", "--program", "/no/vllm"], "/no/vllm cannot be started"),
    ],
)
def test_a_wrong_command_line_is_reported_in_one_sentence(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "serving", "--model", str(tmp_path), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
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
