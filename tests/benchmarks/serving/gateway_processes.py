"""The gateways that the benchmark compares, each on core 0, and the engine on core 1."""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from tests.services import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
GATEWAY_CORE, LOAD_CORE = "0", "1"
KEY = "sk-x"


@dataclass
class GatewayProcess:
    """A running gateway, or the engine itself."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all threads; schedstat counts nanoseconds."""
        tasks = [task for each in self.processes() for task in Path(f"/proc/{each.pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def mebibytes(self) -> float:
        return float(sum(each.memory_info().rss for each in self.processes())) / 2**20


def start_engine(stack: contextlib.ExitStack, folder: Path) -> GatewayProcess:
    """Compile and start the engine."""
    program = folder / "engine"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "gateway_engine.c"], check=True)
    port = free_port()
    return start(stack, folder, "direct", port, LOAD_CORE, [str(program), str(port)])


def start_gateways(
    stack: contextlib.ExitStack, folder: Path, engine: int, options: argparse.Namespace
) -> list[GatewayProcess]:
    """Start every gateway that is installed."""
    commands: dict[str, Callable[[int], list[str] | None]] = {
        "nginx": lambda port: nginx(folder, port, engine) if shutil.which("nginx") else None,
        "ours standalone": lambda port: standalone_command(folder, port, engine),
        "ours, baseline": lambda port: standalone_command(folder, port, engine) if options.baseline else None,
        "ours under uvicorn": lambda port: mounted_command(folder, port),
        "SGLang's router": lambda port: router(options.router, port, engine) if options.router else None,
        "LiteLLM": lambda port: litellm(options.litellm, folder, port, engine) if options.litellm else None,
    }
    started = []
    for name, command in commands.items():
        port = free_port()
        arguments = command(port)
        if arguments is None:
            print(f"{name} is skipped: not installed, or its option is missing.")
        else:
            directory = options.baseline if name == "ours, baseline" else ROOT
            started.append(start(stack, folder, name, port, GATEWAY_CORE, arguments, directory))
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


def standalone_command(folder: Path, port: int, engine: int) -> list[str]:
    routes = folder / "routes.json"
    route = {"name": "m", "base_url": f"http://127.0.0.1:{engine}", "upstream_model": "m-upstream"}
    routes.write_text(json.dumps([route]))
    module = [sys.executable, "-m", "serving.gateway", "--routes", str(routes)]
    return [*module, "--client-key-env", "BENCHMARK_KEY", "--port", str(port)]


def mounted_command(folder: Path, port: int) -> list[str]:
    module = [sys.executable, "-m", "tests.benchmarks.serving.gateway_mounted"]
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
    stack: contextlib.ExitStack,
    folder: Path,
    name: str,
    port: int,
    core: str,
    command: list[str],
    directory: Path = ROOT,
) -> GatewayProcess:
    """Start a process on a fixed core; the stack stops it."""
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    environment = os.environ | {"BENCHMARK_KEY": KEY}
    process = subprocess.Popen(
        ["taskset", "-c", core, *command], stdout=log, stderr=log, env=environment, cwd=directory
    )
    stack.callback(stop, process)
    return GatewayProcess(name, port, process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_ready(one: GatewayProcess, seconds: float = 180) -> None:
    """Wait until a request succeeds."""
    deadline = time.monotonic() + seconds
    url = f"http://127.0.0.1:{one.port}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {KEY}"}
    while True:
        try:
            httpx2.post(url, json=build_request(stream=False), headers=headers, timeout=20).raise_for_status()
            return
        except httpx2.HTTPError:
            if time.monotonic() > deadline or one.process.poll() is not None:
                sys.exit(f"{one.name} does not respond.")
            time.sleep(0.3)


def build_request(stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "hello " * 20}]
    return {"model": "m", "messages": messages, "max_tokens": 20} | ({"stream": True} if stream else {})
