"""Our engines over HTTP against what transformers does by itself, on models with random weights.

python -m tests.benchmarks.hf_engine

Sixteen requests of 16 to 136 tokens each, in turn and all at once; one thread of torch for everybody. CPU
seconds are those of the process that generates, so other work on the machine disturbs them little.
"""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import psutil
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from tests.benchmarks.figures import p50, table
from tests.benchmarks.larger_model import main as make_larger
from tests.integration.serving.conftest import Server, serving
from trainers.starter import build_starter_model

ROUNDS = 3
REQUESTS = [([20 + place] * (5 + 3 * place), 16 + 8 * place) for place in range(16)]


def main() -> None:
    """Measure every way in turn, each round anew, and print medians."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = {"starter (0.15 M)": Path(folder) / "starter", "larger (4 M)": Path(folder) / "larger"}
        starter, larger = models.values()
        build_starter_model(starter, 20, 0)
        make_larger(str(starter), str(larger))
        for name, model in models.items():
            compare(name, model, Path(folder))


def compare(name: str, model: Path, folder: Path) -> None:
    """One table for one model."""
    arguments = ["--model", str(model), "--served-name", "m"]
    with (
        serving(folder / "hf.log", "serving.engines.hf", *arguments) as hf,
        serving(folder / "mlx.log", "serving.engines.mlx", *arguments) as mlx,
    ):
        hf.wait_until_ready()
        mlx.wait_until_ready()
        ways = {
            "`generate` of transformers, in turn": (os.getpid(), in_turn_with(model)),
            "continuous batching of transformers": (os.getpid(), continuous_with(model)),
            "hf over HTTP, in turn": (hf.process.pid, lambda: over_http(hf, 1)),
            "hf over HTTP, at once": (hf.process.pid, lambda: over_http(hf, 16)),
            "mlx over HTTP, in turn": (mlx.process.pid, lambda: over_http(mlx, 1)),
            "mlx over HTTP, at once": (mlx.process.pid, lambda: over_http(mlx, 16)),
        }
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        # The first round warms everything up and is not counted.
        for _ in range(ROUNDS + 1):
            for way, (pid, work) in ways.items():
                taken[way].append(measured(pid, work))
    rows = [
        [way, *(p50(column) for column in zip(*rounds[1:], strict=True))] for way, rounds in taken.items()
    ]
    header = ["way", "CPU s", "× `generate`", "wall s", "× `generate`"]
    table(name, header, [shown(row, rows[0]) for row in rows])


def measured(pid: int, work: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of the process that generates, and seconds by the clock."""
    process = psutil.Process(pid)
    before, begun = process.cpu_times(), time.perf_counter()
    work()
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system, time.perf_counter() - begun


def shown(row: list[Any], first: list[Any]) -> list[str]:
    """Seconds, and how many times faster than the first row."""
    way, cpu, wall = row
    return [way, f"{cpu:.2f}", f"{first[1] / cpu:.2f}", f"{wall:.2f}", f"{first[2] / wall:.2f}"]


def in_turn_with(path: Path) -> Callable[[], None]:
    """Generate one answer after the other, as a plain script would."""
    network = endless(path)

    def work() -> None:
        for ids, most in REQUESTS:
            config = greedy(most)
            answer = network.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), generation_config=config
            )
            assert answer.shape[1] == len(ids) + most

    return work


def continuous_with(path: Path) -> Callable[[], None]:
    """The continuous batching of transformers, with its manager kept between rounds."""
    network = endless(path)
    sizes = ContinuousBatchingConfig(page_size=32, num_blocks=512, max_batch_tokens=512)

    def work() -> None:
        lengths = []
        with network.continuous_batching_context_manager(
            generation_config=greedy(200), continuous_batching_config=sizes, persistent_manager=True
        ) as manager:
            for ids, most in REQUESTS:
                manager.add_request(ids, max_new_tokens=most)
            while len(lengths) < len(REQUESTS):
                if (answer := manager.get_result(timeout=1)) is not None:
                    lengths.append(len(answer.generated_tokens))
        assert sorted(lengths) == [most for _, most in REQUESTS]

    return work


def endless(path: Path) -> Any:
    """The network, whose answers end by their length alone."""
    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    network.generation_config = greedy(1)
    return network


def greedy(most: int) -> GenerationConfig:
    """No sampling, and no end but the length."""
    return GenerationConfig(do_sample=False, max_new_tokens=most, pad_token_id=0)


def over_http(server: Server, together: int) -> None:
    """The same requests through our engine."""

    def ask(request: tuple[list[int], int]) -> Any:
        ids, most = request
        body = {"model": "m", "prompt": ids, "max_tokens": most, "temperature": 0, "ignore_eos": True}
        status, answer = server.post("/v1/completions", body)
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == most

    with ThreadPoolExecutor(together) as pool:
        list(pool.map(ask, REQUESTS))


if __name__ == "__main__":
    main()
