"""CPU for each request of the gateway, against nginx, LiteLLM's proxy and SGLang's router, in one run.

    python -m tests.benchmarks.gateway --litellm /opt/litellm/bin/litellm --router /opt/router/bin/python

Every gateway runs on core 0; load (wrk) and an engine written in C on core 1. Ours does everything that it
does in service: a key, the rewritten model name, counts, the access log. nginx checks and rewrites nothing.
CPU is that of the gateway's processes alone, which other work on the machine disturbs least; a figure is the
median of the rounds. What is not installed is named and left out.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.figures import p50, table
from tests.serving.conftest import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GATEWAY_CORE, LOAD_CORE = "0", "1"
CONCURRENCIES = (1, 16, 64)
STREAMS = 200
SECONDS, STREAM_SECONDS = 2, 6
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


def main() -> None:
    """Start all, measure in turns, print tables."""
    options = parser().parse_args()
    if not shutil.which("wrk"):
        sys.exit("This benchmark loads with wrk: apt-get install wrk.")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = start_engine(stack, folder)
        contestants = [engine, *start_gateways(stack, folder, engine.port, options)]
        for one in contestants:
            await_ready(one)
        compare_requests(contestants, folder, options.rounds)
        compare_streams([one for one in contestants if one.name != "LiteLLM"], options.rounds)
        rows = [[one.name, f"{one.mebibytes():.0f}"] for one in contestants[1:]]
        table("Memory after that, RSS of all processes", ["gateway", "MiB"], rows)


def parser() -> argparse.ArgumentParser:
    """What may be chosen."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--litellm", help="its command `litellm`")
    options.add_argument("--router", help="a Python that has the package sglang-router")
    return options


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


def compare_requests(contestants: list[Contestant], folder: Path, rounds: int) -> None:
    """CPU milliseconds of each kind of request, all gateways in turn in every round."""
    kinds = {kind: script(folder, kind) for kind in ("plain", "stream")}
    cells = [(kind, concurrency) for kind in kinds for concurrency in CONCURRENCIES]
    figures: dict[tuple[str, str, int], list[float]] = {}
    for one in contestants:
        for kind, concurrency in cells[::3]:
            load(one, kinds[kind], concurrency)
    for _ in range(rounds):
        for kind, concurrency in cells:
            for one in contestants:
                spent = load(one, kinds[kind], concurrency)
                figures.setdefault((one.name, kind, concurrency), []).append(spent)
    for kind in kinds:
        medians = {
            one.name: [p50(figures[one.name, kind, c]) for c in CONCURRENCIES] for one in contestants[1:]
        }
        base = medians.get("nginx", [float("nan")] * len(CONCURRENCIES))
        rows = [
            [name, *(f"{value:.3f} ({value / by:.2f})" for value, by in zip(found, base, strict=True))]
            for name, found in medians.items()
        ]
        header = ["gateway", *(f"c={concurrency}" for concurrency in CONCURRENCIES)]
        table(f"CPU-ms of the gateway for each {kind} request (in brackets: nginx = 1)", header, rows)


def script(folder: Path, kind: str) -> Path:
    """What wrk sends."""
    file = folder / f"{kind}.lua"
    body = json.dumps(request(kind == "stream"), separators=(",", ":"))
    file.write_text(
        f'wrk.method="POST"\nwrk.headers["Authorization"]="Bearer {KEY}"\n'
        f'wrk.headers["Content-Type"]="application/json"\nwrk.body={json.dumps(body)}\n'
    )
    return file


def load(one: Contestant, lua: Path, concurrency: int) -> float:
    """CPU milliseconds for each request under load."""
    before = one.cpu_seconds()
    url = f"http://127.0.0.1:{one.port}/v1/chat/completions"
    command = [
        "taskset",
        "-c",
        LOAD_CORE,
        "wrk",
        "-t1",
        f"-c{concurrency}",
        f"-d{SECONDS}s",
        "--timeout",
        "30s",
    ]
    told = subprocess.run([*command, "-s", lua, url], capture_output=True, text=True, check=True).stdout
    spent = one.cpu_seconds() - before
    found = re.search(r"(\d+) requests in", told)
    assert found and "Non-2xx" not in told, told
    return spent * 1000 / max(1, int(found[1]))


def compare_streams(contestants: list[Contestant], rounds: int) -> None:
    """Slow streams: what the gateway adds to the time to the first token, and its CPU for each chunk."""
    figures: dict[str, list[tuple[float, float, float]]] = {one.name: [] for one in contestants}
    for _ in range(rounds):
        for one in contestants:
            figures[one.name].append(stream(one))
    direct = [first for first, _, _ in figures["direct"]]
    rows = []
    for name, found in figures.items():
        added = [first - own for (first, _, _), own in zip(found, direct, strict=True)]
        first, delay, spent = (p50(values) for values in zip(*found, strict=True))
        rows.append([name, f"{first:.3f}", f"{p50(added):.3f}", f"{delay:.3f}", f"{spent:.1f}"])
    header = ["", "to first token ms", "added ms", "delay of a chunk ms", "CPU µs a chunk"]
    table(f"{STREAMS} slow streams of 50 chunks a second each", header, rows)


def stream(one: Contestant) -> tuple[float, float, float]:
    module = [sys.executable, "-m", "tests.benchmarks.gateway_streams"]
    command = ["taskset", "-c", LOAD_CORE, *module, str(one.port), str(STREAMS), str(STREAM_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        time.sleep(3)
        before, begun = one.cpu_seconds(), time.monotonic()
        time.sleep(2)
        spent = (one.cpu_seconds() - before) / (time.monotonic() - begun)
        assert process.stdout is not None
        found = json.load(process.stdout)
    chunks = found["chunks"] / (STREAM_SECONDS - 0.5)
    return found["first_token"], found["delay"], spent / chunks * 1e6


if __name__ == "__main__":
    main()
