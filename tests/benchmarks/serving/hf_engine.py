"""Our engines over HTTP, compared with transformers in process, on models with random weights.

python -m tests.benchmarks.serving.hf_engine

Sixteen requests of 16 to 136 tokens each, sequential and concurrent; torch has one thread everywhere. CPU
seconds are those of the generating process, so other work on the machine hardly affects them.
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

from tests.benchmarks.report import p50, print_table
from tests.benchmarks.trainers.larger_model import create_model
from tests.integration.serving.conftest import Server, serving
from trainers.starter import build_starter_model

ROUNDS = 3
REQUESTS = [([20 + place] * (5 + 3 * place), 16 + 8 * place) for place in range(16)]


def main() -> None:
    """Measure all methods in turn in each round, and print medians."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = {"starter (0.15 M)": Path(folder) / "starter", "larger (4 M)": Path(folder) / "larger"}
        starter, larger = models.values()
        build_starter_model(starter, 20, 0)
        create_model(str(starter), str(larger))
        for name, model in models.items():
            compare(name, model, Path(folder))


def compare(name: str, model: Path, folder: Path) -> None:
    """Measure one model and print its table."""
    arguments = ["--model", str(model), "--served-name", "m"]
    with (
        serving(folder / "hf.log", "serving.engines.hf", *arguments) as hf,
        serving(folder / "mlx.log", "serving.engines.mlx", *arguments) as mlx,
    ):
        hf.wait_until_ready()
        mlx.wait_until_ready()
        methods = {
            "`generate` of transformers, sequential": (os.getpid(), generate_sequentially(model)),
            "continuous batching of transformers": (os.getpid(), generate_continuously(model)),
            "hf over HTTP, sequential": (hf.process.pid, lambda: send_requests(hf, 1)),
            "hf over HTTP, concurrent": (hf.process.pid, lambda: send_requests(hf, 16)),
            "mlx over HTTP, sequential": (mlx.process.pid, lambda: send_requests(mlx, 1)),
            "mlx over HTTP, concurrent": (mlx.process.pid, lambda: send_requests(mlx, 16)),
        }
        durations: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
        # The first round is a warm-up and is not counted.
        for _ in range(ROUNDS + 1):
            for method, (pid, work) in methods.items():
                durations[method].append(measure(pid, work))
    rows = [
        [method, *(p50(column) for column in zip(*rounds[1:], strict=True))]
        for method, rounds in durations.items()
    ]
    header = ["method", "CPU s", "× `generate`", "wall s", "× `generate`"]
    print_table(name, header, [format_row(row, rows[0]) for row in rows])


def measure(pid: int, work: Callable[[], None]) -> tuple[float, float]:
    """Return the CPU seconds of the generating process, and wall seconds."""
    process = psutil.Process(pid)
    before, started_at = process.cpu_times(), time.perf_counter()
    work()
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system, time.perf_counter() - started_at


def format_row(row: list[Any], first: list[Any]) -> list[str]:
    """Return seconds, and how many times faster they are than those of the first row."""
    method, cpu, wall = row
    return [method, f"{cpu:.2f}", f"{first[1] / cpu:.2f}", f"{wall:.2f}", f"{first[2] / wall:.2f}"]


def generate_sequentially(path: Path) -> Callable[[], None]:
    """Return a function that generates one completion after the other, as a plain script would."""
    model = load_model(path)

    def work() -> None:
        for ids, max_tokens in REQUESTS:
            config = greedy(max_tokens)
            completion = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), generation_config=config
            )
            assert completion.shape[1] == len(ids) + max_tokens

    return work


def generate_continuously(path: Path) -> Callable[[], None]:
    """Return a function that uses transformers' continuous batching; its manager is kept between rounds."""
    model = load_model(path)
    sizes = ContinuousBatchingConfig(page_size=32, num_blocks=512, max_batch_tokens=512)

    def work() -> None:
        lengths: list[int] = []
        with model.continuous_batching_context_manager(
            generation_config=greedy(200), continuous_batching_config=sizes, persistent_manager=True
        ) as manager:
            for ids, max_tokens in REQUESTS:
                manager.add_request(ids, max_new_tokens=max_tokens)
            while len(lengths) < len(REQUESTS):
                if (completion := manager.get_result(timeout=1)) is not None:
                    lengths.append(len(completion.generated_tokens))
        assert sorted(lengths) == [max_tokens for _, max_tokens in REQUESTS]

    return work


def load_model(path: Path) -> Any:
    """Load the model so that a completion ends by its length only."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config = greedy(1)
    return model


def greedy(max_tokens: int) -> GenerationConfig:
    """Return a config for greedy decoding that ends by length only."""
    return GenerationConfig(do_sample=False, max_new_tokens=max_tokens, pad_token_id=0)


def send_requests(server: Server, concurrency: int) -> None:
    """Send the same requests to our engine."""

    def send(request: tuple[list[int], int]) -> Any:
        ids, max_tokens = request
        body = {"model": "m", "prompt": ids, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        status, completion = server.post("/v1/completions", body)
        assert status == 200, completion
        assert completion["usage"]["completion_tokens"] == max_tokens

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(send, REQUESTS))


if __name__ == "__main__":
    main()
