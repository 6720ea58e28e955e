"""The gateways that the benchmark compares, each on core 0, and the engine behind them on core 1."""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.serving.conftest import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GATEWAY_CORE, LOAD_CORE = "0", "1"
KEY = "sk-x"


@dataclass
class Contestant:
    """A gateway that runs, or the engine itself."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Of all its threads, to the nanosecond."""
        tasks = [task for each in self.processes() for task in Path(f"/proc/{each.pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def mebibytes(self) -> float:
        return sum(each.memory_info().rss for each in self.processes()) / 2**20


def start_engine(stack: contextlib.ExitStack, folder: Path) -> Contestant:
    """The engine, compiled from its source."""
    program = folder / "engine"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "gateway_engine.c"], check=True)
    port = free_port()
    return start(stack, folder, "direct", port, LOAD_CORE, [str(program), str(port)])


def start_gateways(
    stack: contextlib.ExitStack, folder: Path, engine: int, options: argparse.Namespace
) -> list[Contestant]:
    """Every gateway that is installed."""
    commands = {
        "nginx": lambda port: nginx(folder, port, engine) if shutil.which("nginx") else None,
        "ours alone": lambda port: alone(folder, port, engine),
        "ours under uvicorn": lambda port: mounted(folder, port),
        "SGLang's router": lambda port: router(options.router, port, engine) if options.router else None,
        "LiteLLM": lambda port: litellm(options.litellm, folder, port, engine) if options.litellm else None,
    }
    started = []
    for name, command in commands.items():
        port = free_port()
        words = command(port)
        if words is None:
            print(f"{name} is left out: not installed, or not named by an option.")
        else:
            started.append(start(stack, folder, name, port, GATEWAY_CORE, words))
    return started


def nginx(folder: Path, port: int, engine: int) -> list[str]:
    config = folder / "nginx.conf"
    paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err;\n"
        "events { worker_connections 2048; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; {paths}\n"
        f" upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; keepalive_requests 100000000; }}\n"
        f" server {{ listen 127.0.0.1:{port}; keepalive_requests 100000000; location / {{\n"
        '  proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";\n'
        "  proxy_buffering off; } } }\n"
    )
    return ["nginx", "-p", str(folder), "-c", str(config)]


def alone(folder: Path, port: int, engine: int) -> list[str]:
    routes = folder / "routes.json"
    route = {"name": "m", "base_url": f"http://127.0.0.1:{engine}", "upstream_model": "m-upstream"}
    routes.write_text(json.dumps([route]))
    module = [sys.executable, "-m", "serving.gateway", "--routes", str(routes)]
    return [*module, "--client-key-env", "BENCHMARK_KEY", "--port", str(port)]


def mounted(folder: Path, port: int) -> list[str]:
    module = [sys.executable, "-m", "tests.benchmarks.gateway_mounted"]
    return [*module, str(folder / "routes.json"), str(port)]


def router(python: str, port: int, engine: int) -> list[str]:
    module = [python, "-m", "sglang_router.launch_router", "--worker-urls", f"http://127.0.0.1:{engine}"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    return [*module, *place, "--policy", "round_robin", "--log-level", "error"]


def litellm(program: str, folder: Path, port: int, engine: int) -> list[str]:
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: m\n    litellm_params:\n"
        f"      {{model: openai/m, api_base: 'http://127.0.0.1:{engine}/v1', api_key: none}}\n"
        f"general_settings: {{master_key: {KEY}}}\nlitellm_settings: {{telemetry: false}}\n"
    )
    return [
        program,
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]


def start(
    stack: contextlib.ExitStack, folder: Path, name: str, port: int, core: str, command: list[str]
) -> Contestant:
    """Start on a fixed core, and stop at the end of the run."""
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    environment = os.environ | {"BENCHMARK_KEY": KEY}
    process = subprocess.Popen(
        ["taskset", "-c", core, *command], stdout=log, stderr=log, env=environment, cwd=ROOT
    )
    stack.callback(stop, process)
    return Contestant(name, port, process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_ready(one: Contestant, seconds: float = 180) -> None:
    """Until a request is answered."""
    deadline = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = json.dumps(request(stream=False)).encode()
    while True:
        asked = urllib.request.Request(f"http://127.0.0.1:{one.port}/v1/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=20):
                return
        except OSError:
            if time.monotonic() > deadline or one.process.poll() is not None:
                sys.exit(f"{one.name} does not answer.")
            time.sleep(0.3)


def request(stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "hello " * 20}]
    return {"model": "m", "messages": messages, "max_tokens": 20} | ({"stream": True} if stream else {})
