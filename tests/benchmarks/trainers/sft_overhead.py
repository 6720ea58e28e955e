"""The overhead of our `sft` stage over a TRL script that trains the same model on the same rows.

Both pad rows and sample them in the same order, so only the code around the training differs, and their
losses agree. CPU time is compared, since wall time includes other work on the machine.

python -m tests.benchmarks.trainers.sft_overhead
"""

import argparse
import ast
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.report import p50, print_table
from tests.e2e.platform import ROOT
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Attention
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.modeling.load import load_tokenizer
from trainers.rendering.examples.sft import load_examples
from trainers.training.samplers import StepSampler
from workers.hosts import guarded_process
from workers.hosts.devices import NO_DEVICES
from workers.hosts.environments import program_environment

SAVE_STEPS = 100
BATCH_SIZE = 8
# The first steps load kernels and fill caches.
WARM_UP_STEPS = 10
HOUR_SECONDS = 3600.0
OURS, SAVING, BARE = "our stage", "bare TRL, saving", "bare TRL, not saving"


@dataclass(frozen=True)
class TrainingRun:
    """Steps per CPU second and per wall second, and the logged losses."""

    cpu_rate: float
    wall_rate: float
    losses: list[float]


def main() -> None:
    """Train each model with each program in turn, several times, and print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=410, help="steps of a run with the larger model")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        folder = Path(name)
        _python(["-m", "trainers.starter", "--out", str(folder / "starter"), "--steps", "1"])
        _python(
            ["-m", "tests.benchmarks.trainers.larger_model", str(folder / "starter"), str(folder / "larger")]
        )
        _compare("Larger model", folder / "larger", options.steps, options.rounds)
        _compare("Starter", folder / "starter", 4 * options.steps, options.rounds)


def _compare(title: str, base: Path, steps: int, rounds: int) -> None:
    rows = generate_problems(2000, ProblemSplit.train, seed=1)
    dataset, ordered = base.parent / "train.jsonl", base.parent / "ordered.jsonl"
    _write(dataset, rows)
    _write(ordered, _in_our_order(rows, dataset, base, steps))
    runs: dict[str, list[TrainingRun]] = {OURS: [], SAVING: [], BARE: []}
    for _ in range(rounds):
        for name, each in runs.items():
            with tempfile.TemporaryDirectory(dir=base.parent) as out:
                each.append(_train(name, base, dataset if name == OURS else ordered, Path(out), steps))
            print(f"{title}, {name}: {each[-1].cpu_rate:.2f} steps per CPU second", file=sys.stderr)
    max_difference = _assert_same_training(runs)
    print_table(
        f"{title}: {steps} steps, medians of {rounds} rounds; losses differ by at most {max_difference:.0e}",
        ["program", "steps per CPU second", "ours : this", "per round", "ours : this, wall time"],
        [_row(name, runs) for name in runs],
    )


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _in_our_order(
    rows: Sequence[dict[str, str]], dataset: Path, base: Path, steps: int
) -> Iterator[dict[str, str]]:
    """Yield the rows in the order in which our stage samples them, epoch after epoch."""
    config = _config(base, dataset, steps)
    examples = load_examples(str(dataset), load_tokenizer(str(base)), config.max_length).examples
    order = StepSampler([len(example.input_ids) for example in examples], BATCH_SIZE, config.seed)
    for epoch in range(math.ceil(steps * BATCH_SIZE / len(rows))):
        order.set_epoch(epoch)
        yield from (rows[number] for number in order)


def _config(base: Path, dataset: Path, steps: int) -> SftConfig:
    return SftConfig(
        base=str(base),
        dataset=str(dataset),
        max_steps=steps,
        batch_size=BATCH_SIZE,
        save_every_steps=SAVE_STEPS,
        attention=Attention.sdpa,
    )


def _train(program: str, base: Path, dataset: Path, out: Path, steps: int) -> TrainingRun:
    """Train as a worker starts a program: under a guard, with its environment and a log file."""
    if program == OURS:
        (out / "config.json").write_text(_config(base, dataset, steps).model_dump_json())
        arguments = ["trainers.sft", "--config", str(out / "config.json"), "--run-dir", str(out)]
    else:
        arguments = ["tests.benchmarks.trainers.bare_trl", "--base", str(base), "--dataset", str(dataset)]
        arguments += ["--out", str(out), "--steps", str(steps)]
        arguments += ["--save-steps", str(SAVE_STEPS)] if program == SAVING else []
    command = [sys.executable, "-m", "tests.benchmarks.trainers.step_timer", *arguments]
    log = out / "log.txt"
    child = guarded_process.start_guarded_process(
        command, log=log, environment=program_environment(NO_DEVICES), seconds=HOUR_SECONDS
    )
    assert child.wait(HOUR_SECONDS) == 0, log.read_text()
    lines = log.read_text().splitlines()
    times = [[float(value) for value in line.split()[1:3]] for line in lines if line.startswith("step ")]
    (wall, cpu), (wall_end, cpu_end) = times[WARM_UP_STEPS - 1], times[-1]
    counted = len(times) - WARM_UP_STEPS
    losses = _our_losses(out) if program == OURS else _printed_losses(lines)
    return TrainingRun(counted / (cpu_end - cpu), counted / (wall_end - wall), losses)


def _our_losses(run_dir: Path) -> list[float]:
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [event["values"]["loss"] for event in events if event["type"] == "metrics"]


def _printed_losses(lines: Sequence[str]) -> list[float]:
    return [float(ast.literal_eval(line)["loss"]) for line in lines if line.startswith("{'loss'")]


def _assert_same_training(runs: dict[str, list[TrainingRun]]) -> float:
    """Assert that logged losses agree except for rounding, and return the largest difference."""
    logged = zip(*(run.losses for each in runs.values() for run in each), strict=True)
    max_difference: float = max(max(losses) - min(losses) for losses in logged)
    assert max_difference < 1e-3, f"the programs train differently: a loss differs by {max_difference}"
    return max_difference


def _row(name: str, runs: dict[str, list[TrainingRun]]) -> list[str]:
    pairs = list(zip(runs[OURS], runs[name], strict=True))
    ratios = sorted(ours.cpu_rate / this.cpu_rate for ours, this in pairs)
    return [
        name,
        f"{p50([run.cpu_rate for run in runs[name]]):.2f}",
        f"{p50(ratios):.3f}",
        " ".join(f"{ratio:.3f}" for ratio in ratios),
        f"{p50([ours.wall_rate / this.wall_rate for ours, this in pairs]):.3f}",
    ]


def _python(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, capture_output=True)


if __name__ == "__main__":
    main()
