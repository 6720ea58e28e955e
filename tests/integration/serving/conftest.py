"""Real processes over tiny models: engines, a gateway before them, and the official SDK as the client."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.integration.serving.fake_engine import FakeEngine
from tests.services import free_port

BASE_SAYS = "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Only a server that hangs needs as long: a busy machine starts one in half a minute.
READY_SECONDS = 120.0
WAIT_SECONDS = 120.0


@dataclass
class Server:
    """A process that serves HTTP."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON of a path; the status is 0 while nothing listens."""
        return self.call("GET", path)

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """Return status and JSON, or text, of the response to a JSON body."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return self.call("POST", path, content=body, headers={"Content-Type": "application/json"})

    def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Return status and JSON, or text, of the response on a connection of its own."""
        try:
            response = httpx2.request(method, self.url + path, timeout=WAIT_SECONDS, **options)
        except (httpx2.NetworkError, httpx2.RemoteProtocolError):
            return 0, None
        return response.status_code, decode(response.content)

    def chat(self, model: str, **options: Any) -> str:
        """Return the tiny models' greedy completion of a question."""
        messages = [{"role": "user", "content": options.pop("question", "hello")}]
        body = {"model": model, "messages": messages, "temperature": 0, **options}
        status, response = self.post("/v1/chat/completions", body)
        assert status == 200, response
        content: str = response["choices"][0]["message"]["content"]
        return content

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> "Server":
        wait_for(lambda: self.get("/health")[0] == 200 or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.log.read_text()
        return self


def decode(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


def wait_for(condition: Any, seconds: float = WAIT_SECONDS) -> None:
    """Poll until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@contextlib.contextmanager
def serving(log: Path, module: str, *arguments: str) -> Iterator[Server]:
    """Run `python -m module --port …`, and terminate it at the end."""
    port = free_port()
    command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT, text=True)
    try:
        yield Server(process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `base`, `alpha` and `beta`."""
    return build_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same with a head size of 32, the minimum of vLLM's CPU kernels."""
    return build_models(tmp_path_factory.mktemp("wide"), "32")


def build_models(folder: Path, *options: str) -> Path:
    program = Path(__file__).with_name("make_tiny.py")
    command: list[str | Path] = [sys.executable, program, folder, *options]
    built = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def engine(tiny: Path) -> Iterator[Server]:
    """Yield an engine with the base and both adapters, in fp32 as the models were saved."""
    with serving(tiny / "engine.log", "serving.engines.hf", *both_adapters(tiny)) as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="session")
def mlx(tiny: Path) -> Iterator[Server]:
    """Yield the same on MLX, with a limit of one more adapter."""
    pytest.importorskip("mlx_lm")
    arguments = [*both_adapters(tiny), "--max-adapters", "3"]
    with serving(tiny / "mlx.log", "serving.engines.mlx", *arguments) as server:
        yield server.wait_until_ready()


def both_adapters(tiny: Path) -> list[str]:
    arguments = ["--model", str(tiny / "base"), "--served-name", "base"]
    for name in ("alpha", "beta"):
        arguments += ["--adapter", f"{name}={tiny / name}"]
    return arguments


@contextlib.contextmanager
def one_engine(tiny: Path, folder: Path, kind: str = "hf") -> Iterator[Server]:
    """Yield an engine for one test, which may kill it."""
    arguments = ["--model", str(tiny / "base"), "--served-name", "base"]
    with serving(folder / "engine.log", f"serving.engines.{kind}", *arguments) as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="session")
def gateway(engine: Server, tiny: Path) -> Iterator[Server]:
    """Yield a gateway in front of the engine; `starter` is the base under another name."""
    with gateway_over(routes_to(engine), tiny) as server:
        yield server


@pytest.fixture(scope="session")
def mlx_gateway(mlx: Server, tiny: Path) -> Iterator[Server]:
    """Yield the same in front of MLX."""
    with gateway_over(routes_to(mlx), tiny) as server:
        yield server


@pytest.fixture(scope="session", params=["hf", "mlx"])
def each_gateway(request: pytest.FixtureRequest) -> Server:
    """Return a gateway in front of each of our engines in turn."""
    found: Server = request.getfixturevalue("gateway" if request.param == "hf" else "mlx_gateway")
    return found


def routes_to(engine: Server) -> list[dict[str, str]]:
    routes = [{"name": name, "base_url": engine.url} for name in ("base", "alpha", "beta")]
    routes += [{"name": "starter", "base_url": engine.url, "upstream_model": "base"}]
    return [*routes, {"name": "gone", "base_url": f"http://127.0.0.1:{free_port()}"}]


@contextlib.contextmanager
def gateway_over(routes: list[dict[str, Any]], folder: Path) -> Iterator[Server]:
    """Yield a gateway over these routes."""
    file = folder / f"routes-{time.monotonic_ns()}.json"
    file.write_text(json.dumps(routes))
    with serving(file.with_suffix(".log"), "serving.gateway", "--routes", str(file)) as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def fake_engine() -> Iterator[FakeEngine]:
    """Yield a fake engine, shared by one module; the model name selects its timing and failures."""
    engine = FakeEngine()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def client(gateway: Server) -> Iterator[OpenAI]:
    """Yield the official SDK with the gateway, without retries of its own."""
    with sdk_of(gateway) as sdk:
        yield sdk


def sdk_of(gateway: Server) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=WAIT_SECONDS)
