"""How an engine starts, stops and fails."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from serving.engines.decoding.base import ModelNotLoadable
from serving.engines.hf.model import load_runner
from tests.integration.serving.conftest import (
    BASE_SAYS,
    ENVIRONMENT,
    WAIT_SECONDS,
    Server,
    one_engine,
    serving,
    wait_for,
)
from tests.services import free_port
from trainers.configs.engines import EngineOptions

LONG = {"model": "base", "prompt": "하나", "max_tokens": 8000, "ignore_eos": True, "temperature": 0}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.engines.hf", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_SECONDS)


def test_a_missing_model_stops_the_engine_with_one_line(tmp_path: Path) -> None:
    finished = run("--model", str(tmp_path / "nothing"), "--port", str(free_port()))
    assert finished.returncode == 3
    lines = [line for line in finished.stderr.splitlines() if "cannot be loaded" in line]
    assert len(lines) == 1
    assert "Traceback" not in finished.stderr


def test_an_adapter_as_the_model_is_rejected_with_a_hint(tiny: Path) -> None:
    with pytest.raises(ModelNotLoadable, match="Pass its base as --model"):
        load_runner(str(tiny / "alpha"), "alpha", EngineOptions())


def test_a_port_in_use_stops_the_engine(tiny: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        finished = run("--model", str(tiny / "base"), "--port", str(holder.getsockname()[1]))
    assert finished.returncode == 1
    assert "Cannot listen" in finished.stderr


def test_an_engine_without_a_database_responds_503_until_it_is_ready_and_exits_with_0(
    tiny: Path, tmp_path: Path
) -> None:
    arguments = ["--engine", "hf", "--model", str(tiny / "base"), "--adapter", f"alpha={tiny / 'alpha'}"]
    with serving(tmp_path / "log", "serving", *arguments, "--served-name", "base") as server:
        seen: list[int] = []

        def is_ready() -> bool:
            seen.append(server.get("/health")[0])
            return seen[-1] == 200

        wait_for(is_ready)
        assert set(seen) <= {0, 503, 200}
        assert (server.chat("base"), server.chat("alpha")[:5]) == (BASE_SAYS, "alpha")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT_SECONDS) == 0


def test_the_last_adapter_can_be_unloaded_and_another_loaded(tiny: Path, tmp_path: Path) -> None:
    with one_engine(tiny, tmp_path) as server:
        for name in ("alpha", "beta", "alpha"):
            assert server.chat("base") == BASE_SAYS
            adapter = {"lora_name": name, "lora_path": str(tiny / name)}
            assert server.post("/v1/load_lora_adapter", adapter)[0] == 200
            assert server.chat(name).startswith(name)
            assert server.post("/v1/unload_lora_adapter", adapter)[0] == 200
        assert server.chat("base") == BASE_SAYS


def test_sigterm_lets_a_running_request_complete(tiny: Path, tmp_path: Path) -> None:
    with one_engine(tiny, tmp_path) as server:
        body = LONG | {"max_tokens": 100, "stream": True, "stream_options": {"include_usage": True}}
        url = f"{server.url}/v1/completions"
        with httpx2.stream("POST", url, json=body, timeout=WAIT_SECONDS) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.send_signal(signal.SIGTERM)
            *_, usage, done = [line.removeprefix("data: ") for line in lines if line]
        assert (done, json.loads(usage)["usage"]["completion_tokens"]) == ("[DONE]", 100)
        assert server.process.wait(WAIT_SECONDS) == 0


def test_sigterm_does_not_wait_indefinitely(tiny: Path, tmp_path: Path) -> None:
    # Four parallel sequences take several times as long as the engine waits.
    with one_engine(tiny, tmp_path) as server, stream(server, n=4) as connection:
        assert connection.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT_SECONDS) == 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                assert b"[DONE]" not in part, "the engine waited for the end of the completion"


def test_a_failing_generation_loop_ends_the_process(tiny: Path) -> None:
    # A token beyond the embedding makes the forward pass raise. HTTP rejects it, so it is submitted here.
    program = f"""
import time
from typing import Any
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.hf.model import load_runner
from trainers.configs.engines import EngineOptions
from serving.engines.decoding.sequence import SequenceParams, SequenceState
from serving.engines.decoding.sampling import SamplingParams
loop = GenerationLoop(lambda: load_runner({str(tiny / "base")!r}, "base", EngineOptions()), 4)
loop.thread.start()
while not loop.healthy:
    time.sleep(0.1)
params = SequenceParams(loop.runner.served, [999999], SamplingParams(), 5, seed=0)
loop.submit(SequenceState(params, print))
time.sleep(200)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert finished.returncode == 4
    assert "IndexError" in finished.stderr


def test_a_disconnected_client_stops_its_generation(engine: Server) -> None:
    # Four sequences, which take a minute to their end.
    with stream(engine, n=4) as connection:
        assert connection.recv(1000)
        wait_for(lambda: engine.get("/health")[1]["running"] >= 4)
    wait_for(lambda: engine.get("/health")[1]["running"] == 0, 20)


def test_a_public_address_is_rejected_with_a_hint() -> None:
    host = "0.0.0.0"
    command = [sys.executable, "-m", "serving", "--model", "m", "--host", host]
    finished = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert finished.returncode == 1
    assert host in finished.stderr and "python -m serving.gateway" in finished.stderr


def stream(server: Server, **fields: int) -> socket.socket:
    """Open a connection that receives a long stream."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    body = json.dumps(LONG | {"stream": True} | fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection
