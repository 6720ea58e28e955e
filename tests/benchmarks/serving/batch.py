"""Requests per second of a batch, and of a plain asyncio client that sends the same file to the same engine.

    python -m tests.benchmarks.serving.batch

The plain client is what people write in place of a batch: aiohttp, a semaphore, and a line of the output for
each response. It checks nothing, does not resume, and syncs no file. Both have 32 requests in progress, at a
stand-in engine that responds after a fixed time. The rounds alternate; values are medians. Times include the
start of each process, and what a batch does beyond its requests: validation, the journal, the result files.
On a shared machine, read the CPU time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.report import p50, print_table
from tests.conftest import ROOT
from tests.services import free_port

CONCURRENCY = 32
ENGINE_SECONDS = (0.0, 0.02, 0.2)
PATH = "/v1/chat/completions"
Measurement = tuple[float, float]
"""Wall and CPU seconds."""
PLAIN_CLIENT = """
import asyncio, json, sys
import aiohttp

async def main(source, target, url):
    limit = asyncio.Semaphore(32)
    with open(source) as lines, open(target, "w") as output:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            async def send(line):
                try:
                    async with session.post(url, json=line["body"]) as response:
                        body = await response.json(content_type=None)
                        answer = {"status_code": response.status, "body": body}
                        row = {"custom_id": line["custom_id"], "response": answer}
                        output.write(json.dumps(row) + "\\n")
                finally:
                    limit.release()
            for line in lines:
                await limit.acquire()
                group.create_task(send(json.loads(line)))

asyncio.run(main(*sys.argv[1:]))
"""


def main() -> None:
    """Measure both clients with each engine, and print requests per second and their ratio."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=5000)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    rows = []
    for seconds in ENGINE_SECONDS:
        n_requests = arguments.requests if seconds < 0.1 else arguments.requests // 5
        with tempfile.TemporaryDirectory() as folder:
            batch, plain = _measure(Path(folder), n_requests, seconds, arguments.rounds)
        rates = [n_requests / p50([wall for wall, _ in each]) for each in (batch, plain)]
        cpu = [p50([used for _, used in each]) / n_requests for each in (batch, plain)]
        rows.append(
            [
                f"{seconds * 1000:.0f}",
                f"{CONCURRENCY / seconds:.0f}" if seconds else "–",
                *(f"{rate:.0f}" for rate in rates),
                f"{rates[0] / rates[1]:.2f}",
                *(f"{each * 1000:.2f}" for each in cpu),
                f"{cpu[0] / cpu[1]:.2f}",
            ]
        )
    kinds = ["batch", "plain client", "ratio"]
    header = ["ms of the engine", "engine's limit /s", *kinds, *(f"CPU-ms, {kind}" for kind in kinds)]
    print_table(f"Requests per second and CPU time of each, {CONCURRENCY} in progress", header, rows)


def _measure(
    folder: Path, n_requests: int, seconds: float, rounds: int
) -> tuple[list[Measurement], list[Measurement]]:
    source = folder / "requests.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for number in range(n_requests):
            body = {"model": "m", "messages": [{"role": "user", "content": f"text {number} " + "x" * 500}]}
            line = {"custom_id": f"r{number}", "method": "POST", "url": PATH, "body": body}
            file.write(json.dumps(line) + "\n")
    port = free_port()
    script = str(ROOT / "tests" / "batch_engine.py")
    engine = [sys.executable, script, "--ledger", str(folder / "ledger"), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    config = {"stage": "batch", "input": str(source), "engines": {"m": {"url": url, "model": "m"}}}
    (folder / "batch.json").write_text(json.dumps(config | {"concurrency": CONCURRENCY}))
    times: tuple[list[Measurement], list[Measurement]] = [], []
    with subprocess.Popen([*engine, "--seconds", str(seconds)]) as process:
        try:
            time.sleep(2)
            for number in range(rounds):
                run_dir = str(folder / f"run{number}")
                batch = ["-m", "serving.batch", "--config", str(folder / "batch.json"), "--run-dir", run_dir]
                plain = ["-c", PLAIN_CLIENT, str(source), str(folder / "plain.jsonl"), url + PATH]
                for values, command in zip(times, (batch, plain), strict=True):
                    values.append(_run(command))
        finally:
            process.kill()
    return times


def _run(command: list[str]) -> Measurement:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, used


if __name__ == "__main__":
    main()
