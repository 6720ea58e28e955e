"""The real vLLM on tiny models: `TUNESMITH_ENGINE_COMMANDS` names it, or it is on PATH."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from serving.engines import find_engine
from tests.integration.serving.conftest import Server, gateway_over, serving, wait_for

PROGRAM = json.loads(os.environ.get("TUNESMITH_ENGINE_COMMANDS", "{}")).get("vllm", ["vllm", "serve"])
ENGINE = find_engine("vllm")
START_SECONDS = 600.0
NEEDS_VLLM = pytest.mark.skipif(shutil.which(PROGRAM[0]) is None, reason="vLLM is not installed")


@contextlib.contextmanager
def vllm(models: Path, *arguments: str) -> Iterator[Server]:
    """Start vLLM with `python -m serving`, without compilation, which tests do not need."""
    command = ["--engine", "vllm", "--program", " ".join(PROGRAM), "--model", str(models / "base")]
    command += ["--served-name", "base", "--max-model-len", "512", "--dtype", "float32"]
    command += ["--cpu-cache-gib", "1", "--enforce-eager", *arguments]
    with serving(models / f"{time.monotonic_ns()}.log", "serving", *command) as server:
        wait_for(lambda: ENGINE.is_healthy(server.url) or server.process.poll() is not None, START_SECONDS)
        assert server.process.poll() is None, server.log.read_text()
        # The first request waits for the compilation of kernels.
        wait_for(lambda: server.post("/v1/completions", {"model": "base", "prompt": "1"})[0] == 200, 300)
        yield server


@contextlib.contextmanager
def connect_sdk(server: Server, folder: Path) -> Iterator[OpenAI]:
    """Connect the official SDK to a gateway in front of the engine."""
    routes = [{"name": name, "base_url": server.url} for name in ("base", "alpha")]
    with (
        gateway_over(routes, folder) as gateway,
        OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=120) as sdk,
    ):
        yield sdk


def process_tree(server: Server) -> list[psutil.Process]:
    """Return the server's process, its engine core and its workers."""
    leader = psutil.Process(server.process.pid)
    return [leader, *leader.children(recursive=True)]
