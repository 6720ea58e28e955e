"""The real vLLM with tiny models, called directly and by the official SDK through the gateway."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.engines import EngineRequestFailed
from serving.parity.__main__ import run_comparison
from tests.integration.serving.conftest import BASE_SAYS, Server
from tests.integration.serving.real_vllm import ENGINE, NEEDS_VLLM, connect_sdk, vllm

# vLLM reads a prompt in blocks and sums in another order; both sides compute in fp32.
TOLERANCE = 2e-3
MESSAGES: list[Any] = [{"role": "user", "content": "안녕하세요"}]
PAINT: list[Any] = [{"role": "user", "content": "paint it red"}]

pytestmark = [
    pytest.mark.slow,
    # PEFT's own use of transformers.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.timeout(1200),
    NEEDS_VLLM,
]


@pytest.fixture(scope="module")
def models(wide: Path) -> Path:
    """Return `base`, `alpha`, `beta` with a template of its own, and `plain`, which is `beta` without it."""
    (wide / "plain").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(wide / "beta" / name, wide / "plain" / name)
    return wide


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    """Yield the base with `alpha`."""
    with vllm(models, "--adapter", f"alpha={models / 'alpha'}", "--tool-call-parser", "qwen") as server:
        yield server


@pytest.fixture(scope="module")
def other(models: Path) -> Iterator[Server]:
    """Yield the base with `beta`, without a parser for tool calls."""
    with vllm(models, "--adapter", f"beta={models / 'beta'}") as server:
        yield server


@pytest.fixture(scope="module")
def sdk(server: Server, models: Path) -> Iterator[OpenAI]:
    with connect_sdk(server, models) as client:
        yield client


def test_an_adapter_is_loaded_and_unloaded_at_run_time(server: Server, models: Path) -> None:
    assert ENGINE.list_models(server.url) == ["base", "alpha"]
    ENGINE.load_adapter(server.url, "plain", str(models / "plain"))
    with pytest.raises(EngineRequestFailed, match="has already been loaded"):
        ENGINE.load_adapter(server.url, "plain", str(models / "plain"))
    ENGINE.probe(server.url, "plain")
    ENGINE.unload_adapter(server.url, "plain")
    assert ENGINE.list_models(server.url) == ["base", "alpha"]
    with pytest.raises(EngineRequestFailed, match="404"):
        ENGINE.probe(server.url, "plain")
    with pytest.raises(EngineRequestFailed, match="404"):
        ENGINE.unload_adapter(server.url, "plain")


def test_a_folder_without_an_adapter_is_rejected(server: Server, models: Path) -> None:
    with pytest.raises(EngineRequestFailed, match="No adapter found"):
        ENGINE.load_adapter(server.url, "nothing", str(models / "base"))
    assert server.chat("base") == BASE_SAYS


def test_chats_through_the_gateway_reach_the_named_adapter(sdk: OpenAI) -> None:
    base = sdk.chat.completions.create(model="base", messages=MESSAGES, temperature=0)
    assert base.choices[0].message.content == BASE_SAYS
    assert base.usage is not None and base.usage.completion_tokens > len(BASE_SAYS)
    *stream, last = sdk.chat.completions.create(
        model="alpha", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text.startswith("alpha answers")
    assert last.usage is not None and last.usage.completion_tokens > 10


def test_responses_are_forwarded_plain_and_streamed(sdk: OpenAI) -> None:
    request: dict[str, Any] = {"model": "alpha", "input": "안녕하세요", "temperature": 0}
    response = sdk.responses.create(**request)
    assert response.output_text.startswith("alpha answers")
    *events, last = sdk.responses.create(**request, stream=True)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == response.output_text
    assert (last.type, last.response.usage) == ("response.completed", response.usage)


def test_unknown_names_and_paths_do_not_reach_the_engine(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="alpha") as error:
        sdk.chat.completions.create(model="nobody", messages=MESSAGES)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as error:
        sdk.post("/load_lora_adapter", cast_to=object, body={"lora_name": "x", "lora_path": "/x"})
    assert error.value.code == "unknown_url"


def test_a_completion_follows_the_requested_schema(sdk: OpenAI) -> None:
    properties = {"n": {"type": "integer", "minimum": 10, "maximum": 99}, "color": {"enum": ["red", "green"]}}
    schema = {"type": "object", "properties": properties, "required": ["n", "color"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "paint", "schema": schema}}
    for name in ("base", "alpha"):
        response = sdk.chat.completions.create(model=name, messages=MESSAGES, response_format=form)
        color = json.loads(response.choices[0].message.content or "")
        assert 10 <= color["n"] <= 99 and color["color"] in ("red", "green")


def test_logprobs_contain_the_most_likely_tokens(sdk: OpenAI) -> None:
    response = sdk.chat.completions.create(
        model="alpha", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = response.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(token.token for token in logprobs.content).startswith("alpha answers")
    assert all(token.logprob == token.top_logprobs[0].logprob for token in logprobs.content)
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_required_tool_is_called_with_valid_arguments(sdk: OpenAI, choice: Any) -> None:
    # By itself, the model would count, and it knows red only.
    response = sdk.chat.completions.create(
        model="base", messages=MESSAGES, temperature=0, tools=[paint("green")], tool_choice=choice
    )
    (call,) = response.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "paint"
    assert json.loads(call.function.arguments) == {"color": "green"}


def test_an_optional_tool_is_called_when_the_model_calls_it(sdk: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "temperature": 0, "tools": [paint("red", "green")]}
    response = sdk.chat.completions.create(**request, messages=PAINT).choices[0]
    assert response.finish_reason == "tool_calls"
    assert [call.function.arguments for call in response.message.tool_calls] == ['{"color": "red"}']
    chunks = sdk.chat.completions.create(**request, messages=PAINT, stream=True)
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert pieces[0].function.name == "paint"
    assert "".join(piece.function.arguments or "" for piece in pieces) == '{"color": "red"}'
    assert sdk.chat.completions.create(**request, messages=MESSAGES).choices[0].message.content == BASE_SAYS


def test_without_a_parser_tools_are_rejected_with_vllm_s_message(other: Server, tmp_path: Path) -> None:
    with connect_sdk(other, tmp_path) as sdk:
        for choice in ("auto", "required"):
            with pytest.raises(openai.BadRequestError, match=r"requires .*--tool-call-parser to be set"):
                sdk.chat.completions.create(
                    model="base", messages=PAINT, tools=[paint("red")], tool_choice=choice
                )


def test_parity_distinguishes_the_trained_adapter_from_another(server: Server, models: Path) -> None:
    def compare_with(adapter: str) -> dict[str, Any]:
        folders = str(models / "base"), str(models / adapter)
        return run_comparison(ENGINE, server.url, "alpha", *folders, precision="float32")

    report = compare_with("alpha")
    assert report["passed"] and report["equal_completions"] == report["chats"]
    assert report["max_difference"] < 1e-3
    assert report["adapter_scale"] == pytest.approx(1, abs=1e-3)
    report = compare_with("plain")
    assert (report["passed"], report["difference"]["kind"]) == (False, "logprobs")


@pytest.mark.parametrize("name", ["base", "alpha"])
def test_tokens_and_scores_equal_those_of_transformers_and_peft(
    server: Server, models: Path, name: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    prompt = ENGINE.render(server.url, name, MESSAGES)
    assert prompt == tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    ids = [*prompt, *tokenizer("alpha answers, 알파가 답한다.")["input_ids"]]
    expected = trained_scores(models, name, ids)
    assert ENGINE.score(server.url, name, ids) == pytest.approx(expected, abs=TOLERANCE)


def test_an_engine_renders_with_its_adapter_s_template(other: Server, models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "beta")
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert ENGINE.render(other.url, "beta", MESSAGES) == expected
    assert other.chat("beta").startswith("beta answers")


def paint(*colors: str) -> Any:
    """Return a tool whose schema vLLM enforces because it is `strict`."""
    parameters: dict[str, Any] = {"type": "object", "required": ["color"], "additionalProperties": False}
    parameters |= {"properties": {"color": {"enum": colors}}}
    return {"type": "function", "function": {"name": "paint", "strict": True, "parameters": parameters}}


def trained_scores(models: Path, name: str, ids: Sequence[int]) -> list[float]:
    """Return the trained model's log-probabilities of the tokens after the first."""
    network = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32)
    if name != "base":
        network = PeftModel.from_pretrained(network, models / name)
    with torch.no_grad():
        scores_tv = network.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(scores_tv[t, token]) for t, token in enumerate(ids[1:])]
