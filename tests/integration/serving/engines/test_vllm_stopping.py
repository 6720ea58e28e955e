"""How the real vLLM ends, asked to or killed, and what its clients see of it through the gateway."""

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

from tests.integration.serving.conftest import ENVIRONMENT, Server, wait_for
from tests.integration.serving.real_vllm import (
    ENGINE,
    NEEDS_VLLM,
    PROGRAM,
    START_SECONDS,
    family_of,
    sdk_over,
    vllm,
)
from tests.services import free_port
from workers.hosts import guarded_process

HELLO: list[Any] = [{"role": "user", "content": "hello"}]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), NEEDS_VLLM]


def test_sigterm_lets_a_running_answer_finish_and_leaves_nothing(wide: Path, tmp_path: Path) -> None:
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
        asked = pool.submit(server.post, "/v1/completions", body)
        wait_for(lambda: ENGINE.count_requests(server.url) or asked.done())
        assert not asked.done(), asked.result()
        psutil.Process(child.pid).children()[0].terminate()
        assert child.wait(ENGINE.stop_seconds) is not None
        assert asked.result()[0] == 200
    wait_for(lambda: not any(map(lives, family)))


def test_sleep_mode_is_refused_where_there_is_no_gpu(wide: Path) -> None:
    command = [sys.executable, "-m", "serving", "--engine", "vllm", "--program", " ".join(PROGRAM)]
    command += ["--model", str(wide / "base"), "--port", str(free_port()), "--sleep-mode"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    assert "Sleep mode is not supported on current platform" in ended.stderr + ended.stdout


@pytest.mark.parametrize("whole", [True, False], ids=["all", "core"])
def test_vllm_killed_in_mid_stream_ends_it_with_an_error_and_no_done(wide: Path, whole: bool) -> None:
    with (
        vllm(wide, "--max-model-len", "8192") as server,
        sdk_over(server, wide) as sdk,
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
    with vllm(wide, "--max-model-len", "8192") as server, sdk_over(server, wide) as sdk:
        for process_ in victims(server, whole=False):
            process_.suspend()
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(endless(sdk).__enter__)
            wait_for(lambda: is_asked(server))
            for victim in victims(server, whole):
                victim.kill()
            with pytest.raises(openai.InternalServerError) as refused:
                asked.result()
    assert refused.value.status_code in (500, 502, 503)


def endless(sdk: OpenAI) -> Any:
    """A stream that goes on for as long as the context lasts."""
    return sdk.chat.completions.with_streaming_response.create(
        model="base", messages=HELLO, max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
    )


def victims(server: Server, whole: bool) -> list[psutil.Process]:
    """All of vLLM, or its engine core, without which its HTTP server lives on for a while."""
    family = family_of(server)
    return family if whole else [member for member in family if "EngineCore" in member.name()]


def is_asked(server: Server) -> bool:
    """Whether somebody has a connection to it."""
    port = int(server.url.rpartition(":")[2])
    open_ones = psutil.Process(server.process.pid).net_connections("tcp")
    return any(c.status == "ESTABLISHED" and c.laddr.port == port for c in open_ones)


def lives(process: psutil.Process) -> bool:
    """Whether it is more than an entry that nobody has read yet."""
    try:
        return guarded_process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
