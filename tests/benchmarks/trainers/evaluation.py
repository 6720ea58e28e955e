"""Rows per second of an evaluation: the stage `evaluate` on the engine `hf`, against three other ways.

All complete the same prompts greedily with the same model, dtype and limit of tokens, and score them by exact
match. "One by one" is a loop around `generate`; lm-eval's backend `hf` runs with its default batch size of 1,
and with batches. Loading the model is not measured, scoring is. A second table is for log-probabilities of
the references, for which the stage `lm_eval` runs with its backends `hf` and `completions`. The order of the
ways changes with each repetition, and CPU time includes all threads and the engine's process.

    nice -n 15 python -m tests.benchmarks.trainers.evaluation --rows 200
"""

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from serving.engines import EngineConfig, find_engine
from serving.engines.child_engine import run_engine
from tests.benchmarks.report import print_table
from tests.services import free_port
from trainers import evaluate
from trainers.configs import EngineKind, EngineOptions, parse_stage
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.lm_eval.models import open_model
from trainers.metrics.maths.final_answer import judge_answer
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import load_tokenizer
from trainers.rendering.render import PromptCompletion, parse_prompt, render_prompt_text
from trainers.runtime.events import EventWriter

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Way:
    """One way to evaluate: a function that returns the share of right answers or the mean log-probability."""

    name: str
    run: Callable[[], float]


def main() -> None:
    """Evaluate in each way, and print rows per second and the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--base", type=Path, help="model; default: the starter model")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        folder = Path(name)
        base = options.base or _make_starter(folder)
        rows = [dict(row) for row in generate_problems(options.rows, ProblemSplit.held_out, seed=1)]
        dataset = folder / "rows.jsonl"
        dataset.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        pairs = [parse_prompt(number, row, dataset) for number, row in enumerate(rows, start=1)]
        engine = EngineConfig(
            str(base), "base", LOOPBACK, free_port(), {},
            EngineOptions(max_batch_size=options.concurrency),
        )  # fmt: skip
        with run_engine(find_engine(EngineKind.hf, []), engine, folder / "engine.log") as url:
            tokens, concurrency = options.max_new_tokens, options.concurrency
            harness = _Harness(base, pairs, tokens)
            ways = [
                _our_evaluation(dataset, url, tokens, concurrency, folder),
                _one_by_one(base, pairs, tokens),
                Way("lm-eval hf, batch 1", lambda: harness.evaluate(1)),
                Way(f"lm-eval hf, batch {concurrency}", lambda: harness.evaluate(concurrency)),
            ]
            _report("Generation", ways, options.rows, options.repetitions)
            ways = [
                _our_loglikelihood(base, harness, "hf", url, concurrency),
                _our_loglikelihood(base, harness, "completions", url, concurrency),
                Way("lm-eval hf, batch 1", lambda: harness.score(1)),
                Way(f"lm-eval hf, batch {concurrency}", lambda: harness.score(concurrency)),
            ]
            _report("Log-probabilities", ways, options.rows, options.repetitions)


def _report(title: str, ways: list[Way], n_rows: int, repetitions: int) -> None:
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    cpu: dict[str, list[float]] = {way.name: [] for way in ways}
    shares: dict[str, float] = {}
    for repetition in range(repetitions):
        for way in ways[repetition % len(ways) :] + ways[: repetition % len(ways)]:
            started, cpu_before = time.monotonic(), _cpu_seconds()
            shares[way.name] = way.run()
            seconds[way.name].append(time.monotonic() - started)
            cpu[way.name].append(_cpu_seconds() - cpu_before)
    ours = statistics.median(seconds[ways[0].name])
    lines = []
    for way in ways:
        wall, used = statistics.median(seconds[way.name]), statistics.median(cpu[way.name])
        figures = (n_rows / wall, wall / ours, 1000 * used / n_rows, shares[way.name])
        lines.append([way.name, *(f"{value:.2f}" for value in figures)])
    print_table(
        f"{title}: {n_rows} rows, medians of {repetitions}",
        ["way", "rows/s", "times our seconds", "CPU-ms a row", "score"],
        lines,
    )


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its running children."""
    children = psutil.Process().children(recursive=True)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    times = [child.cpu_times() for child in children]
    total: float = usage.ru_utime + usage.ru_stime + sum(one.user + one.system for one in times)
    return total


def _our_evaluation(dataset: Path, url: str, tokens: int, concurrency: int, folder: Path) -> Way:
    config: Any = parse_stage(
        {
            "stage": "evaluate",
            "model": "base",
            "dataset": str(dataset),
            "engines": {"model": {"url": url, "model": "base"}},
            "max_new_tokens": tokens,
            "concurrency": concurrency,
        }
    )

    def run() -> float:
        run_dir = Path(tempfile.mkdtemp(dir=folder))
        with EventWriter(run_dir / "events.jsonl") as events:
            result = evaluate.run(config, run_dir, events)
        assert result is not None
        share: float = result["models"][0]["scores"][0]["value"]
        return share

    return Way("evaluate, engine hf", run)


def _one_by_one(base: Path, pairs: list[PromptCompletion], tokens: int) -> Way:
    generator = TextGenerator(str(base), torch.device("cpu"), tokens)

    def run() -> float:
        texts = [generator.generate([pair])[0] for pair in pairs]
        return _share(texts, pairs)

    return Way("one by one", run)


def _our_loglikelihood(base: Path, harness: "_Harness", backend: str, url: str, concurrency: int) -> Way:
    stage: dict[str, Any] = {"stage": "lm_eval", "model": str(base), "tasks": ["gsm8k"], "backend": backend}
    engine = {"engine_url": url, "engine_model": "base", "concurrency": concurrency}
    config: Any = parse_stage(stage | engine | {"chat_template": False})
    model = open_model(config).lm
    return Way(f"lm_eval, backend {backend}", lambda: _mean_logprob(model, harness.references))


class _Harness:
    """lm-eval's backend for transformers, with the rendered prompts of the same rows."""

    def __init__(self, base: Path, pairs: list[PromptCompletion], tokens: int) -> None:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        self._make: Any = lambda size: HFLM(
            pretrained=str(base), device="cpu", dtype="float32", batch_size=size
        )
        self._models: dict[int, Any] = {}
        self._pairs = pairs
        tokenizer = load_tokenizer(str(base))
        arguments = {"until": ["<|im_end|>"], "max_gen_toks": tokens, "do_sample": False}
        self._requests = [
            Instance("generate_until", {}, (render_prompt_text(pair, tokenizer), arguments), position)
            for position, pair in enumerate(pairs)
        ]
        self.references = [
            Instance("loglikelihood", {}, (render_prompt_text(pair, tokenizer), pair.completion_text), n)
            for n, pair in enumerate(pairs)
        ]
        for size in (1, 32):
            self._models[size] = self._make(size)

    def evaluate(self, batch_size: int) -> float:
        if batch_size not in self._models:
            self._models[batch_size] = self._make(batch_size)
        texts: list[str] = self._models[batch_size].generate_until(self._requests, disable_tqdm=True)
        return _share(texts, self._pairs)

    def score(self, batch_size: int) -> float:
        """Return the mean log-probability of the references."""
        return _mean_logprob(self._models[batch_size], self.references)


def _mean_logprob(model: Any, requests: list[Any]) -> float:
    scored: list[tuple[float, bool]] = model.loglikelihood(requests, disable_tqdm=True)
    return statistics.mean(logprob for logprob, _ in scored)


def _share(texts: list[str], pairs: list[PromptCompletion]) -> float:
    right: list[bool] = [
        judge_answer(text, pair.completion_text).correct for text, pair in zip(texts, pairs, strict=True)
    ]
    return sum(right) / len(right)


def _make_starter(folder: Path) -> Path:
    out = folder / "starter"
    subprocess.run([sys.executable, "-m", "trainers.starter", "--out", str(out)], check=True)
    return out


if __name__ == "__main__":
    main()
