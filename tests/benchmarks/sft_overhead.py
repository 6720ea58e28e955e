"""What our `sft` stage costs against a bare TRL script that trains the same model on the same rows.

python -m tests.benchmarks.sft_overhead
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from tests.benchmarks.figures import p50, table
from tests.e2e.platform import ROOT
from trainers.configs import Queue
from trainers.configs.sft import SftConfig
from trainers.data.arithmetic import Split, problems
from workers import process
from workers.launch import environment

LOG_STEPS = 10
SAVE_STEPS = 100
HOUR_SECONDS = 3600.0
OURS, SAVING, BARE = "our stage", "bare TRL, saving", "bare TRL, not saving"


@dataclass(frozen=True)
class Logged:
    """One line of a trainer's own log."""

    step: int
    seconds: float
    loss: float


def main() -> None:
    """Train each model in turn by each program, several times over, and print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=410, help="steps of a run with the larger model")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        folder = Path(name)
        dataset = folder / "train.jsonl"
        dataset.write_text("".join(json.dumps(row) + "\n" for row in problems(2000, Split.train, seed=1)))
        _python(["-m", "trainers.starter", "--out", str(folder / "starter"), "--steps", "1"])
        _python(["-m", "tests.benchmarks.larger_model", str(folder / "starter"), str(folder / "larger")])
        _compare("Larger model", folder / "larger", dataset, options.steps, options.rounds)
        _compare("Starter", folder / "starter", dataset, 4 * options.steps, options.rounds)


def _compare(title: str, base: Path, dataset: Path, steps: int, rounds: int) -> None:
    logs: dict[str, list[list[Logged]]] = {OURS: [], SAVING: [], BARE: []}
    for _ in range(rounds):
        for name, log in logs.items():
            with tempfile.TemporaryDirectory(dir=base.parent) as out:
                log.append(_train(name, base, dataset, Path(out), steps))
            print(f"{title}, {name}: {_rate(log[-1]):.2f} steps/s", file=sys.stderr)
    _assert_same_training(logs)
    table(
        f"{title}: from the first logged step to the last of {steps}, medians of {rounds} rounds",
        ["program", "steps/s", "ours : this", "of each round", "undisturbed steps/s", "ours : this"],
        [_row(name, logs) for name in logs],
    )


def _train(program: str, base: Path, dataset: Path, out: Path, steps: int) -> list[Logged]:
    if program == OURS:
        return _ours(base, dataset, out, steps)
    return _bare(base, dataset, out, steps, ["--save-steps", str(SAVE_STEPS)] if program == SAVING else [])


def _ours(base: Path, dataset: Path, out: Path, steps: int) -> list[Logged]:
    """As a worker starts it: from a config file, under a guard, with the environment of a program."""
    config = SftConfig(
        base=str(base),
        dataset=str(dataset),
        max_steps=steps,
        batch_size=8,
        save_every_steps=SAVE_STEPS,
    )
    (out / "config.json").write_text(config.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "trainers.sft",
        "--config",
        str(out / "config.json"),
        "--run-dir",
        str(out),
    ]
    child = process.start(
        command, log=out / "log.txt", environment=environment(Queue.cpu, []), seconds=HOUR_SECONDS
    )
    assert child.wait(HOUR_SECONDS) == 0, (out / "log.txt").read_text()
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        Logged(event["step"], datetime.fromisoformat(event["time"]).timestamp(), event["values"]["loss"])
        for event in events
        if event["type"] == "metrics"
    ]


def _bare(base: Path, dataset: Path, out: Path, steps: int, saving: list[str]) -> list[Logged]:
    """TRL's printed lines carry no time: each gets that of its arrival."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.bare_trl",
        "--base",
        str(base),
        "--dataset",
        str(dataset),
    ]
    command += ["--out", str(out), "--steps", str(steps), *saving]
    logged: list[Logged] = []
    with (
        (out / "log.txt").open("w") as errors,
        subprocess.Popen(
            command,
            env=environment(Queue.cpu, []),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as script,
    ):
        assert script.stdout is not None
        for line in script.stdout:
            if line.startswith("{'loss'"):
                loss = float(ast.literal_eval(line)["loss"])
                logged.append(Logged(LOG_STEPS * (len(logged) + 1), time.time(), loss))
    assert script.returncode == 0, (out / "log.txt").read_text()
    return logged


def _assert_same_training(logs: dict[str, list[list[Logged]]]) -> None:
    """The rows of a step differ between the programs, but not what is learned from as many of them."""
    ends = [sum(line.loss for line in log[-5:]) / 5 for runs in logs.values() for log in runs]
    assert max(ends) < 1.1 * min(ends), f"the programs do not do the same work: {ends}"


def _row(name: str, logs: dict[str, list[list[Logged]]]) -> list[str]:
    ratios = sorted(_rate(ours) / _rate(this) for ours, this in zip(logs[OURS], logs[name], strict=True))
    undisturbed = _undisturbed_rate(logs[name])
    return [
        name,
        f"{p50([_rate(log) for log in logs[name]]):.2f}",
        f"{p50(ratios):.3f}",
        " ".join(f"{ratio:.3f}" for ratio in ratios),
        f"{undisturbed:.2f}",
        f"{_undisturbed_rate(logs[OURS]) / undisturbed:.3f}",
    ]


def _rate(log: list[Logged]) -> float:
    """Steps a second over all, saving included."""
    return (log[-1].step - log[0].step) / (log[-1].seconds - log[0].seconds)


def _undisturbed_rate(logs: list[list[Logged]]) -> float:
    """Steps a second had nothing else run on the machine.

    Between the same two log lines every round does the same work, so the shortest of their times is taken.
    """
    windows = zip(*([b.seconds - a.seconds for a, b in pairwise(log)] for log in logs), strict=True)
    return (logs[0][-1].step - logs[0][0].step) / sum(map(min, windows))


def _python(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, capture_output=True)


if __name__ == "__main__":
    main()
