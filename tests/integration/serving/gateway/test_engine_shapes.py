"""The same requests give the same shapes on `hf`, `mlx` and the real vLLM, but for what is listed here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving.conftest import Server, both_adapters, gateway_over, serving
from tests.integration.serving.gateway.engine_requests import REQUESTS, send
from tests.integration.serving.real_vllm import NEEDS_VLLM, vllm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Fields that vLLM adds to those of OpenAI's API; fields that are null are left out on all engines.
OF_VLLM = {"system_fingerprint", "stop_reason", "prompt_logprobs", "frequency_penalty", "presence_penalty"}
OF_VLLM |= {"service_tier", "cached_tokens_per_turn", "input_tokens_per_turn", "output_tokens_per_turn"}
OF_VLLM |= {"tool_output_tokens", "tool_output_tokens_per_turn"}
# Fields of the Responses API that vLLM leaves out or null.
OF_OURS = {"metadata", "reasoning", "store", "text", "top_logprobs", "completed_at", "logprobs"}
FIRST_DELTA = "the first delta of a call has no `arguments`, and ours empty ones, as OpenAI's"
EMPTY_CONTENT = "`content` is an empty string next to calls that were required, and ours null, as OpenAI's"
FINISH = (
    "the finish reason is in the chunk of the last token if that has log-probabilities or choices are several"
)
STATUS = "an item that was cut off is `completed`, and `tool_choice` is `none` without tools"
PARAM = "the error names no parameter, or `logprobs` in place of `top_logprobs`"
DIFFERENT = {
    "chat logprobs stream": FINISH,
    "chat n stream": FINISH,
    "tools auto called stream": FIRST_DELTA,
    "tools required": EMPTY_CONTENT,
    "tools required stream": FIRST_DELTA,
    "tools named": EMPTY_CONTENT,
    "tools named stream": FIRST_DELTA,
    "tools not parallel": EMPTY_CONTENT,
    "response": STATUS,
    "response stream": STATUS,
    "response length": STATUS,
    "response instructions": STATUS,
    "response schema": STATUS,
    "error no messages": PARAM,
    "error top_logprobs": PARAM,
    "error schema": PARAM,
}


@pytest.fixture(scope="module")
def gateway(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a gateway with the same model on each engine."""
    pytest.importorskip("mlx_lm")
    limit = [*both_adapters(wide)[:4], "--max-model-len", "512"]
    with (
        serving(wide / "hf.log", "serving.engines.hf", *limit) as hf,
        serving(wide / "mlx.log", "serving.engines.mlx", *limit) as mlx,
        vllm(wide, "--tool-call-parser", "qwen") as real,
    ):
        engines = {"hf": hf.wait_until_ready(), "mlx": mlx.wait_until_ready(), "vllm": real}
        routes = [
            {"name": name, "base_url": engine.url, "upstream_model": "base"}
            for name, engine in engines.items()
        ]
        with gateway_over(routes, tmp_path_factory.mktemp("shapes")) as found:
            yield found


@NEEDS_VLLM
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_gives_the_same_shape_on_every_engine(gateway: Server, name: str) -> None:
    ours = send(gateway.url, "hf", name)
    assert send(gateway.url, "mlx", name) == ours
    others = without(send(gateway.url, "vllm", name), OF_VLLM)
    path, _ = REQUESTS[name]
    known = OF_OURS if path == "/v1/responses" else set()
    same = without(others, known) == without(ours, known)
    assert same != (name in DIFFERENT), (ours, others)


def without(shape: Any, names: set[str]) -> Any:
    """Return a shape without fields of these names."""
    if isinstance(shape, dict):
        return {name: without(value, names) for name, value in shape.items() if name not in names}
    return [without(value, names) for value in shape] if isinstance(shape, list) else shape
