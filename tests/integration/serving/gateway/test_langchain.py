"""LangChain's `ChatOpenAI` through the gateway to the real engines.

`TUNESMITH_LANGCHAIN_PYTHON` names the Python of an environment that has `langchain-openai`.
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
    pytest.mark.skipif(not PYTHON, reason="TUNESMITH_LANGCHAIN_PYTHON names no Python that has LangChain"),
]


@pytest.fixture(scope="module")
def told(each_gateway: Server) -> dict[str, Any]:
    """What a program that uses LangChain was given."""
    command = [PYTHON, PROGRAM, f"{each_gateway.url}/v1"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_an_invoked_model_gives_the_trained_answer_and_its_usage(told: dict[str, Any]) -> None:
    assert told["invoke"]["content"] == BASE_SAYS
    assert told["invoke"]["finish_reason"] == "stop"
    assert told["invoke"]["usage"]["output_tokens"] > len(BASE_SAYS)


def test_a_stream_joins_to_the_same_answer_and_the_same_usage(told: dict[str, Any]) -> None:
    assert "".join(told["stream"]["contents"]) == BASE_SAYS
    assert len([text for text in told["stream"]["contents"] if text]) > 10
    assert told["stream"]["usage"] == [told["invoke"]["usage"]]
    assert told["stream"]["finish_reasons"] == ["stop"]


def test_an_async_stream_is_the_same(told: dict[str, Any]) -> None:
    assert "".join(told["astream"]) == BASE_SAYS


def test_a_batch_answers_in_its_order(told: dict[str, Any]) -> None:
    base, other = told["batch"]
    assert base == BASE_SAYS
    assert other != BASE_SAYS


def test_a_chain_reaches_the_named_adapter_with_a_system_message(told: dict[str, Any]) -> None:
    assert told["chain"].startswith("alpha")


def test_options_that_are_bound_reach_the_engine(told: dict[str, Any]) -> None:
    assert told["stopped"] == "하나 둘 셋 "
    assert told["seeded"][0] == told["seeded"][1]
    assert bytes(byte for token in told["logprobs"] for byte in token["bytes"]).decode() == BASE_SAYS


def test_errors_are_openais_and_langchains_own_and_name_what_is_wrong(told: dict[str, Any]) -> None:
    assert {"NotFoundError", "ModelNotFoundError"} <= set(told["unknown_model"]["kinds"])
    assert "Served now: alpha" in told["unknown_model"]["message"]
    assert {"BadRequestError", "ModelInvalidRequestError"} <= set(told["tools"]["kinds"])
    assert "'tools' is not supported" in told["tools"]["message"]
    assert "InternalServerError" in told["engine_gone"]["kinds"]
    assert "503" in told["engine_gone"]["message"]
