"""LangChain's `ChatOpenAI` through the gateway to the real engines.

`TUNESMITH_LANGCHAIN_PYTHON` is the Python of an environment with `langchain-openai`.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving.conftest import BASE_SAYS, ENVIRONMENT, Server

PYTHON = os.environ.get("TUNESMITH_LANGCHAIN_PYTHON", "")
PROGRAM = Path(__file__).with_name("langchain_client.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TUNESMITH_LANGCHAIN_PYTHON is not set"),
]


@pytest.fixture(scope="module")
def results(each_gateway: Server) -> dict[str, Any]:
    """Return the results of a program that uses LangChain."""
    command = [str(PYTHON), str(PROGRAM), f"{each_gateway.url}/v1"]
    finished = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


def test_an_invocation_returns_the_trained_completion_and_its_usage(results: dict[str, Any]) -> None:
    assert results["invoke"]["content"] == BASE_SAYS
    assert results["invoke"]["finish_reason"] == "stop"
    assert results["invoke"]["usage"]["output_tokens"] > len(BASE_SAYS)


def test_a_stream_has_the_same_text_and_usage(results: dict[str, Any]) -> None:
    assert "".join(results["stream"]["contents"]) == BASE_SAYS
    assert len([text for text in results["stream"]["contents"] if text]) > 10
    assert results["stream"]["usage"] == [results["invoke"]["usage"]]
    assert results["stream"]["finish_reasons"] == ["stop"]


def test_an_async_stream_has_the_same_text(results: dict[str, Any]) -> None:
    assert "".join(results["astream"]) == BASE_SAYS


def test_a_batch_keeps_its_order(results: dict[str, Any]) -> None:
    base, other = results["batch"]
    assert base == BASE_SAYS
    assert other != BASE_SAYS


def test_a_chain_reaches_the_named_adapter_with_a_system_message(results: dict[str, Any]) -> None:
    assert results["chain"].startswith("alpha")


def test_bound_options_reach_the_engine(results: dict[str, Any]) -> None:
    assert results["stopped"] == "하나 둘 셋 "
    assert results["seeded"][0] == results["seeded"][1]
    assert bytes(byte for token in results["logprobs"] for byte in token["bytes"]).decode() == BASE_SAYS


def test_tools_are_called_and_both_methods_of_structured_output_work(results: dict[str, Any]) -> None:
    (call,) = results["tool_calls"]
    assert (call["name"], call["args"]) == ("paint", {"color": "red"})
    assert all(color in ("red", "green") for color in results["structured"])


def test_errors_are_openai_s_and_langchain_s_own_and_name_the_cause(results: dict[str, Any]) -> None:
    assert {"NotFoundError", "ModelNotFoundError"} <= set(results["unknown_model"]["kinds"])
    assert "Available: alpha" in results["unknown_model"]["message"]
    assert "InternalServerError" in results["engine_gone"]["kinds"]
    assert "503" in results["engine_gone"]["message"]
