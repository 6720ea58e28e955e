"""CPU time per request of the gateway, nginx, LiteLLM's proxy and SGLang's router, in one run.

    python -m tests.benchmarks.serving.gateway --litellm …/bin/litellm --router …/bin/python

Every gateway runs on core 0; load (wrk) and an engine written in C run on core 1. Ours is in full operation:
it checks a key, rewrites the model name, records metrics and writes the access log. nginx does none of these.
CPU time is that of the gateway's processes only, which other work on the machine affects least. Values are
medians of the rounds. Gateways that are not installed are listed and skipped. `--baseline` adds our gateway
of another checkout, to compare two versions.
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
from pathlib import Path

from tests.benchmarks.report import p50, print_table
from tests.benchmarks.serving.gateway_processes import (
    KEY,
    LOAD_CORE,
    ROOT,
    GatewayProcess,
    build_request,
    start_engine,
    start_gateways,
    wait_until_ready,
)

CONCURRENCIES = (1, 16, 64)
STREAMS = 200
SECONDS, STREAM_SECONDS = 2, 6
# LiteLLM completes few requests in two seconds, and those cut off at the end would distort its result.
LONGER_SECONDS = {"LiteLLM": 10}


def main() -> None:
    """Start all gateways, measure them in turn, and print tables."""
    options = create_parser().parse_args()
    if not shutil.which("wrk"):
        sys.exit("This benchmark loads with wrk: apt-get install wrk.")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = start_engine(stack, folder)
        gateways = [engine, *start_gateways(stack, folder, engine.port, options)]
        for one in gateways:
            wait_until_ready(one)
        compare_requests(gateways, folder, options.rounds)
        if not options.skip_streams:
            compare_streams([one for one in gateways if one.name != "LiteLLM"], options.rounds)
        rows = [[one.name, f"{one.mebibytes():.0f}"] for one in gateways[1:]]
        print_table("Memory after the measurements, RSS of all processes", ["gateway", "MiB"], rows)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--litellm", help="path of the command `litellm`")
    options.add_argument("--router", help="a Python with the package sglang-router")
    options.add_argument("--baseline", type=Path, help="another checkout of this repository")
    options.add_argument("--skip-streams", action="store_true", help="measure requests only")
    return options


def compare_requests(gateways: list[GatewayProcess], folder: Path, rounds: int) -> None:
    """Print CPU milliseconds per request of each kind; each round measures all gateways in turn."""
    kinds = {kind: write_script(folder, kind) for kind in ("plain", "stream")}
    cells = [(kind, concurrency) for kind in kinds for concurrency in CONCURRENCIES]
    results: dict[tuple[str, str, int], list[float]] = {}
    for one in gateways:
        for kind, concurrency in cells[::3]:
            run_load(one, kinds[kind], concurrency)
    for _ in range(rounds):
        for kind, concurrency in cells:
            for one in gateways:
                spent = run_load(one, kinds[kind], concurrency)
                results.setdefault((one.name, kind, concurrency), []).append(spent)
    for kind in kinds:
        medians = {one.name: [p50(results[one.name, kind, c]) for c in CONCURRENCIES] for one in gateways[1:]}
        base = medians.get("nginx", [float("nan")] * len(CONCURRENCIES))
        rows = [
            [name, *(f"{value:.3f} ({value / by:.2f})" for value, by in zip(found, base, strict=True))]
            for name, found in medians.items()
        ]
        header = ["gateway", *(f"c={concurrency}" for concurrency in CONCURRENCIES)]
        print_table(f"CPU-ms of the gateway per {kind} request (in brackets: nginx = 1)", header, rows)


def write_script(folder: Path, kind: str) -> Path:
    """Write wrk's script."""
    file = folder / f"{kind}.lua"
    body = json.dumps(build_request(kind == "stream"), separators=(",", ":"))
    file.write_text(
        f'wrk.method="POST"\nwrk.headers["Authorization"]="Bearer {KEY}"\n'
        f'wrk.headers["Content-Type"]="application/json"\nwrk.body={json.dumps(body)}\n'
    )
    return file


def run_load(one: GatewayProcess, lua: Path, concurrency: int) -> float:
    """Return CPU milliseconds per request under load."""
    before = one.cpu_seconds()
    seconds = LONGER_SECONDS.get(one.name, SECONDS)
    url = f"http://127.0.0.1:{one.port}/v1/chat/completions"
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s"]
    command += ["--timeout", "30s", "-s", str(lua), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wait_until_idle(one)
    spent = one.cpu_seconds() - before
    found = re.search(r"(\d+) requests in", output)
    assert found and "Non-2xx" not in output, output
    return spent * 1000 / max(1, int(found[1]))


def wait_until_idle(one: GatewayProcess, seconds: float = 15) -> None:
    """Wait for work that continues after the load, which must not disturb the next gateway."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = one.cpu_seconds()
        time.sleep(0.1)
        if one.cpu_seconds() - before < 0.01:
            return


def compare_streams(gateways: list[GatewayProcess], rounds: int) -> None:
    """Print the latency that each gateway adds to slow streams, and its CPU time per chunk."""
    engine = gateways[0]
    results: dict[str, list[tuple[float, float, float]]] = {one.name: [] for one in gateways}
    prioritized = set_realtime(engine, True)
    for _ in range(rounds):
        for one in gateways:
            results[one.name].append(measure_streams(one))
    set_realtime(engine, False)
    direct = [first for first, _, _ in results["direct"]]
    rows = []
    for name, found in results.items():
        added = [first - own for (first, _, _), own in zip(found, direct, strict=True)]
        first, delay, spent = (p50(values) for values in zip(*found, strict=True))
        rows.append([name, f"{first:.3f}", f"{p50(added):.3f}", f"{delay:.3f}", f"{spent:.1f}"])
    header = ["", "to first token ms", "added ms", "delay of a chunk ms", "CPU µs per chunk"]
    priority = (
        "with real-time priority" if prioritized else "without priority, so latencies include other work"
    )
    print_table(f"{STREAMS} slow streams of 50 chunks per second each, {priority}", header, rows)


def set_realtime(one: GatewayProcess, wanted: bool) -> bool:
    """Set or reset real-time priority, which keeps other work out of latencies; False if not permitted."""
    policy, priority = (os.SCHED_RR, 1) if wanted else (os.SCHED_OTHER, 0)
    try:
        for each in one.processes():
            for task in Path(f"/proc/{each.pid}/task").iterdir():
                os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))
    except PermissionError:
        return False
    return True


def measure_streams(one: GatewayProcess) -> tuple[float, float, float]:
    set_realtime(one, True)
    module = [sys.executable, "-m", "tests.benchmarks.serving.gateway_streams"]
    command = ["taskset", "-c", LOAD_CORE, *module, str(one.port), str(STREAMS), str(STREAM_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        set_realtime(GatewayProcess("load", 0, process), True)
        time.sleep(3)
        before, started_at = one.cpu_seconds(), time.monotonic()
        time.sleep(2)
        spent = (one.cpu_seconds() - before) / (time.monotonic() - started_at)
        assert process.stdout is not None
        found = json.load(process.stdout)
    if one.name != "direct":
        set_realtime(one, False)
    return found["first_token"], found["delay"], spent / (STREAMS * 50) * 1e6


if __name__ == "__main__":
    main()
