"""How fast rows of ordinary, short lengths are trained: TRL as it comes against our `sft` stage as it comes.

Both train all weights of the same model on the same rows, sixteen to an optimizer step, without saving, in
turn. What counts is the tokens of rows, not of padding, over the time between the first and the last step.

    python -m tests.benchmarks.training_speed
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import table
from tests.e2e.platform import ROOT
from trainers.data.arithmetic import Split, problems

ROWS_PER_STEP = 16
WARM_UP_STEPS = 3
TRL, TRL_KEPT, OURS = "TRL's defaults", "TRL, activations kept", "our defaults"
PROGRAMS = (TRL, TRL_KEPT, OURS)


def main() -> None:
    """Train by each program in turn, several times over, and print medians and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        folder = Path(name)
        _python("-m", "trainers.starter", "--out", str(folder / "starter"), "--steps", "1")
        _python("-m", "tests.benchmarks.larger_model", str(folder / "starter"), str(folder / "larger"))
        dataset = folder / "rows.jsonl"
        dataset.write_text("".join(json.dumps(row) + "\n" for row in rows(options.steps * ROWS_PER_STEP)))
        rates: dict[str, list[float]] = {program: [] for program in PROGRAMS}
        for number in range(options.rounds):
            for program in PROGRAMS:
                rate = _rate(program, folder, dataset, options.steps, number)
                rates[program].append(rate)
                print(f"{program}: {rate:.0f} tokens/s", file=sys.stderr)
    _print(rates, options.rounds)


def rows(count: int) -> list[dict[str, str]]:
    """Problems of one to six sentences: most are short and some are long, as in most collections."""
    rng = random.Random(0)
    made = []
    for row in problems(count, Split.train, seed=1):
        times = rng.choices((1, 2, 3, 6), weights=(6, 3, 2, 1))[0]
        made.append({"question": " ".join([row["question"]] * times), "answer": row["answer"]})
    return made


def _rate(program: str, folder: Path, dataset: Path, steps: int, number: int) -> float:
    """Tokens of rows a second, without the first steps."""
    out = folder / f"{PROGRAMS.index(program)}-{number}"
    if program == OURS:
        stage = {
            "stage": "sft",
            "base": str(folder / "larger"),
            "dataset": str(dataset),
            "tuning": {"method": "full"},
            "batch_size": ROWS_PER_STEP,
            "max_steps": steps,
            "log_every_steps": 1,
            "save_every_steps": 100_000,
        }
        out.mkdir()
        (out / "asked.json").write_text(json.dumps(stage))
        _python("-m", "trainers.sft", "--config", str(out / "asked.json"), "--run-dir", str(out))
        told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        logged = [
            (datetime.fromisoformat(line["time"]).timestamp(), line["values"]["tokens"])
            for line in told
            if line["type"] == "metrics"
        ]
    else:
        more = ["--keep-activations"] if program == TRL_KEPT else []
        printed = _python(
            *("-m", "tests.benchmarks.plain_trl", "--base", str(folder / "larger")),
            *("--dataset", str(dataset), "--out", str(out), "--steps", str(steps), *more),
        )
        lines = [line.split() for line in printed.splitlines() if line.startswith("told ")]
        logged = [(float(seconds), float(tokens)) for _, seconds, tokens in lines]
    (begin, before), (end, after) = logged[WARM_UP_STEPS], logged[-1]
    return (after - before) / (end - begin)


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _print(rates: dict[str, list[float]], rounds: int) -> None:
    def ratios(program: str) -> list[float]:
        return [mine / theirs for mine, theirs in zip(rates[OURS], rates[program], strict=True)]

    lines: list[list[Any]] = [
        [
            program,
            f"{statistics.median(rates[program]):.0f}",
            f"{statistics.median(ratios(program)):.2f}",
            " ".join(f"{ratio:.2f}" for ratio in ratios(program)),
        ]
        for program in PROGRAMS
    ]
    header = ["program", "tokens of rows/s", "ours : this", "of each round"]
    table(f"Full tuning on short rows, medians of {rounds} rounds", header, lines)


if __name__ == "__main__":
    main()
