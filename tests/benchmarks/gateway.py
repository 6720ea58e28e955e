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
from pathlib import Path

from tests.benchmarks.figures import p50, table
from tests.benchmarks.gateway_contestants import (
    KEY,
    LOAD_CORE,
    ROOT,
    Contestant,
    await_ready,
    request,
    start_engine,
    start_gateways,
)

CONCURRENCIES = (1, 16, 64)
STREAMS = 200
SECONDS, STREAM_SECONDS = 2, 6
# So few requests end in two seconds of LiteLLM that those cut off at the end would distort its figures.
LONGER_SECONDS = {"LiteLLM": 10}


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
    seconds = LONGER_SECONDS.get(one.name, SECONDS)
    url = f"http://127.0.0.1:{one.port}/v1/chat/completions"
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s"]
    command += ["--timeout", "30s", "-s", str(lua), url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    await_rest(one)
    spent = one.cpu_seconds() - before
    found = re.search(r"(\d+) requests in", told)
    assert found and "Non-2xx" not in told, told
    return spent * 1000 / max(1, int(found[1]))


def await_rest(one: Contestant, seconds: float = 15) -> None:
    """Some work on long after the load has left, which is of their CPU and must not disturb the next."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = one.cpu_seconds()
        time.sleep(0.1)
        if one.cpu_seconds() - before < 0.01:
            return


def compare_streams(contestants: list[Contestant], rounds: int) -> None:
    """Slow streams: what the gateway adds to the time to the first token, and its CPU for each chunk."""
    engine = contestants[0]
    figures: dict[str, list[tuple[float, float, float]]] = {one.name: [] for one in contestants}
    at_once = urgent(engine, True)
    for _ in range(rounds):
        for one in contestants:
            figures[one.name].append(stream(one))
    urgent(engine, False)
    direct = [first for first, _, _ in figures["direct"]]
    rows = []
    for name, found in figures.items():
        added = [first - own for (first, _, _), own in zip(found, direct, strict=True)]
        first, delay, spent = (p50(values) for values in zip(*found, strict=True))
        rows.append([name, f"{first:.3f}", f"{p50(added):.3f}", f"{delay:.3f}", f"{spent:.1f}"])
    header = ["", "to first token ms", "added ms", "delay of a chunk ms", "CPU µs a chunk"]
    served = "before all other work" if at_once else "in turn with other work: the times are of the machine"
    table(f"{STREAMS} slow streams of 50 chunks a second each, all sides {served}", header, rows)


def urgent(one: Contestant, wanted: bool) -> bool:
    """Have a contestant run before other work, which else decides when a token comes; False if refused."""
    policy, priority = (os.SCHED_RR, 1) if wanted else (os.SCHED_OTHER, 0)
    try:
        for each in one.processes():
            for task in Path(f"/proc/{each.pid}/task").iterdir():
                os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))
    except PermissionError:
        return False
    return True


def stream(one: Contestant) -> tuple[float, float, float]:
    urgent(one, True)
    module = [sys.executable, "-m", "tests.benchmarks.gateway_streams"]
    command = ["taskset", "-c", LOAD_CORE, *module, str(one.port), str(STREAMS), str(STREAM_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        urgent(Contestant("load", 0, process), True)
        time.sleep(3)
        before, begun = one.cpu_seconds(), time.monotonic()
        time.sleep(2)
        spent = (one.cpu_seconds() - before) / (time.monotonic() - begun)
        assert process.stdout is not None
        found = json.load(process.stdout)
    if one.name != "direct":
        urgent(one, False)
    return found["first_token"], found["delay"], spent / (STREAMS * 50) * 1e6


if __name__ == "__main__":
    main()
