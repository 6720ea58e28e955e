"""Goal: GRPO learns as much with an engine as with generation by the trainer itself.

Method: the arithmetic task from one base and the same prompts, with each backend and seed; the mean reward of
every five steps, the importance ratios, and the time of a step. vLLM is the one that
TUNESMITH_ENGINE_COMMANDS names; without it, our engine hf alone is compared.

    python -m tests.benchmarks.trainers.grpo_engine --out FOLDER --seeds 2
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.runtime import run_dir as files
from trainers.starter import build_starter_model

STEPS, STEPS_PER_ROW = 40, 5
COLUMNS = ("mean", "max", "outside", "logprob_difference")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the base and the runs; complete ones are kept.")],
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 2,
) -> None:
    """Run each backend with each seed, and print the curves as Markdown."""
    base, rows = out / "base", out / "rows.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    if not base.exists():
        # With four heads, their width is below what vLLM's kernels for CPUs support.
        build_starter_model(base, 800, 0, heads=2)
    problems = generate_problems(512, ProblemSplit.train, seed=1)
    rows.write_text("".join(json.dumps(dict(row)) + "\n" for row in problems))
    program = json.loads(os.environ.get("TUNESMITH_ENGINE_COMMANDS", "{}")).get("vllm")
    backends = ["transformers", "hf", *(["vllm"] if program else [])]
    runs = {
        (backend, seed): _run(_config(base, rows, backend, seed, program), out / f"{backend}-{seed}")
        for seed in range(seeds)
        for backend in backends
    }
    print(_describe(runs))


def _config(base: Path, rows: Path, backend: str, seed: int, program: list[str] | None) -> dict[str, Any]:
    return {
        "stage": "grpo",
        "base": str(base.resolve()),
        "dataset": str(rows.resolve()),
        "queue": "cpu",
        "rewards": [{"kind": "correctness"}],
        "tuning": {"method": "lora", "rank": 16, "alpha": 32},
        "generation": backend,
        "engine_program": program if backend == "vllm" else None,
        "max_steps": STEPS,
        "batch_size": 128,
        "micro_batch_size": 64,
        "num_generations": 8,
        "max_completion_length": 24,
        "learning_rate": 1.6e-3,
        "log_every_steps": 1,
        "save_every_steps": STEPS,
        "seed": seed,
    }


def _run(config: dict[str, Any], run_dir: Path) -> list[dict[str, float]]:
    """Run the program and return the metrics of each step."""
    run_dir.mkdir(exist_ok=True)
    if files.read_result(run_dir) is None:
        files.write_json(run_dir / "config.json", config)
        command = [sys.executable, "-m", "trainers.grpo", "--config", str(run_dir / "config.json")]
        subprocess.run([*command, "--run-dir", str(run_dir)], check=True)
    events = files.read_lines(run_dir / files.EVENTS)
    assert not [event for event in events if event["type"] == "warning"], run_dir
    return [event["values"] for event in events if event["type"] == "metrics"]


def _describe(runs: dict[tuple[str, int], list[dict[str, float]]]) -> str:
    names = [f"{backend}, seed {seed}" for backend, seed in runs]
    lines = ["| steps | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for start in range(0, STEPS, STEPS_PER_ROW):
        means = [fmean(one["reward"] for one in run[start : start + STEPS_PER_ROW]) for run in runs.values()]
        lines.append(
            f"| {start + 1}–{start + STEPS_PER_ROW} | " + " | ".join(f"{one:.3f}" for one in means) + " |"
        )
    lines += ["", "| run | " + " | ".join(COLUMNS) + " | s a step |", "| --- |" + " --- |" * 5]
    for name, run in zip(names, runs.values(), strict=True):
        ratios = [
            (max if column == "max" else fmean)(one.get(f"importance_ratio/{column}", 1.0) for one in run)
            for column in COLUMNS
        ]
        # The first step compiles.
        seconds = fmean(one["step_time"] for one in run[1:])
        lines.append(f"| {name} | " + " | ".join(f"{one:.7g}" for one in ratios) + f" | {seconds:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
