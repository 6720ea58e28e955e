"""The end of a real vLLM, stopped or killed, and what its clients receive through the gateway."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai import OpenAI

from serving.engines import EngineConfig, child_engine, find_engine
from tests.integration.serving.conftest import ENVIRONMENT, Server, wait_for
from tests.integration.serving.real_vllm import (
    ENGINE,
    NEEDS_VLLM,
    PROGRAM,
    START_SECONDS,
    connect_sdk,
    process_tree,
    vllm,
)
from tests.services import free_port
from trainers.configs.engines import EngineKind, EngineOptions
from trainers.runtime.process_tree import MARKER
from workers.hosts import guarded_process

HELLO: list[Any] = [{"role": "user", "content": "hello"}]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), NEEDS_VLLM]


def test_sigterm_lets_a_running_request_complete_and_leaves_no_process(wide: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "serving", "--engine", "vllm", "--program", " ".join(PROGRAM)]
    command += ["--model", str(wide / "base"), "--port", str(port), "--max-model-len", "4096"]
    command += ["--cpu-cache-gib", "1", "--dtype", "float32", "--enforce-eager"]
    child = guarded_process.start_guarded_process(
        command, log=tmp_path / "log", environment=ENVIRONMENT, seconds=START_SECONDS
    )
    wait_for(
        lambda: ENGINE.is_healthy(f"http://127.0.0.1:{port}") or child.wait(0) is not None, START_SECONDS
    )
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) > 2
    assert {c.laddr.ip for p in family for c in p.net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}
    server = Server(child, f"http://127.0.0.1:{port}", tmp_path / "log")  # type: ignore[arg-type]
    body = {"model": str(wide / "base"), "prompt": "1", "max_tokens": 3000, "ignore_eos": True}
    assert server.post("/v1/completions", body)[0] == 200
    assert ENGINE.count_requests(server.url) == 0
    with ThreadPoolExecutor() as pool:
        request = pool.submit(server.post, "/v1/completions", body)
        wait_for(lambda: ENGINE.count_requests(server.url) or request.done())
        assert not request.done(), request.result()
        psutil.Process(child.pid).children()[0].terminate()
        assert child.wait(ENGINE.stop_seconds) is not None
        assert request.result()[0] == 200
    wait_for(lambda: not any(map(is_running, family)))


def test_sleep_mode_is_rejected_without_a_gpu(wide: Path) -> None:
    command = [sys.executable, "-m", "serving", "--engine", "vllm", "--program", " ".join(PROGRAM)]
    command += ["--model", str(wide / "base"), "--port", str(free_port()), "--sleep-mode"]
    finished = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert finished.returncode != 0
    assert "Sleep mode is not supported on current platform" in finished.stderr + finished.stdout


def test_a_vllm_that_is_killed_leaves_no_engine_core(wide: Path, tmp_path: Path) -> None:
    options = EngineOptions(max_model_len=512, dtype="float32", cpu_cache_gib=1)
    config = EngineConfig(str(wide / "base"), "base", "127.0.0.1", free_port(), {}, options)
    engine, arguments = find_engine(EngineKind.vllm, PROGRAM), ["--enforce-eager"]
    with child_engine.run_engine(engine, config, tmp_path / "log", extra_arguments=arguments):
        (server,) = psutil.Process().children()
        family = [server, *server.children(recursive=True)]
        (core,) = [one for one in family if "EngineCore" in one.name()]
        # Its process title must not overwrite the marker by which it is found.
        assert MARKER in core.environ()
        for victim in (core, server):
            victim.suspend()
        server.kill()
    wait_for(lambda: not any(map(is_running, family)))


@pytest.mark.parametrize("whole", [True, False], ids=["all", "core"])
def test_vllm_killed_in_mid_stream_ends_it_with_an_error_and_no_done(wide: Path, whole: bool) -> None:
    with (
        vllm(wide, "--max-model-len", "8192") as server,
        connect_sdk(server, wide) as sdk,
        endless(sdk) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        for victim in victims(server, whole):
            victim.kill()
        *_, last = [line for line in lines if line]
    assert "error" in json.loads(last.removeprefix("data: "))


@pytest.mark.parametrize("whole", [True, False], ids=["all", "core"])
def test_vllm_killed_before_the_first_token_gives_a_5xx(wide: Path, whole: bool) -> None:
    with vllm(wide, "--max-model-len", "8192") as server, connect_sdk(server, wide) as sdk:
        for victim in victims(server, whole=False):
            victim.suspend()
        with ThreadPoolExecutor() as pool:
            request = pool.submit(endless(sdk).__enter__)
            wait_for(lambda: has_connection(server))
            for victim in victims(server, whole):
                victim.kill()
            with pytest.raises(openai.InternalServerError) as error:
                request.result()
    assert error.value.status_code in (500, 502, 503)


def endless(sdk: OpenAI) -> Any:
    """Request a stream that continues until the end of the context."""
    return sdk.chat.completions.with_streaming_response.create(
        model="base", messages=HELLO, max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
    )


def victims(server: Server, whole: bool) -> list[psutil.Process]:
    """Return all processes of vLLM, or its engine core, which its HTTP server survives for a while."""
    family = process_tree(server)
    return family if whole else [member for member in family if "EngineCore" in member.name()]


def has_connection(server: Server) -> bool:
    """Return whether a client is connected to the server."""
    port = int(server.url.rpartition(":")[2])
    open_ones = psutil.Process(server.process.pid).net_connections("tcp")
    return any(c.status == "ESTABLISHED" and c.laddr.port == port for c in open_ones)


def is_running(process: psutil.Process) -> bool:
    """Return whether a process runs, and is not a zombie."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
