"""The training speed of our `sft` stage and of TRL, both with defaults, on rows of ordinary, short lengths.

All train the same model on the same rows in turn: sixteen rows per optimizer step, fp32, no checkpoints. The
measure is tokens of rows (not of padding) per CPU second after the first steps, since wall time includes
other work on the machine.

    python -m tests.benchmarks.trainers.training_speed
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.report import p50, print_table
from tests.e2e.platform import ROOT
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.modeling.load import load_tokenizer
from trainers.rendering.examples.sft import load_examples

DATA = ROOT.parent / "shared" / "data"
ROWS_PER_STEP = 16
WARM_UP_STEPS = 3
MAX_LENGTH = 1024  # The default of TRL and of our stage.

Row = dict[str, str]


@dataclass(frozen=True)
class TrainingTask:
    """A model, rows and settings to train with."""

    folder: Path
    base: Path
    dataset: Path
    steps: int
    tuning: str
    tokens: int
    """Number of tokens of all rows."""


@dataclass(frozen=True)
class TokenRate:
    """Tokens of rows per CPU second and per wall second, without the first steps."""

    cpu: float
    wall: float


def main() -> None:
    """Train with each program in turn, several times, on each kind of rows, and print the rates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    parser.add_argument(
        "--rows", choices=ROWS, nargs="+", default=[name for name in ROWS if _is_available(name)]
    )
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        _python("-m", "trainers.starter", "--out", f"{name}/starter", "--steps", "1")
        for kind in options.rows:
            task = _prepare(kind, Path(name), options.steps, options.tuning)
            rates: dict[str, list[TokenRate]] = {program: [] for program in PROGRAMS}
            for number in range(options.rounds):
                for program, run in PROGRAMS.items():
                    rates[program].append(_rate(run, task, task.folder / f"{program}-{number}"))
                    print(f"{kind}, {program}: {rates[program][-1]}", file=sys.stderr)
            _print(f"{_describe(kind, task)}; {options.tuning} tuning, {options.rounds} rounds", rates)


def word_problems(count: int) -> list[Row]:
    """Return generated problems of one to six sentences: most short, some long, as in most datasets."""
    rng = random.Random(0)
    made = []
    for row in generate_problems(count, ProblemSplit.train, seed=1):
        times = rng.choices((1, 2, 3, 6), weights=(6, 3, 2, 1))[0]
        made.append({"question": " ".join([row["question"]] * times), "answer": row["answer"]})
    return made


def gsm8k(count: int) -> list[Row]:
    """Return the first training rows of GSM8K."""
    lines = (DATA / "gsm8k/train.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


def translation(count: int) -> list[Row]:
    """Return the first sentences of a Korean-English news corpus."""
    korean, english = (
        (DATA / f"korean-english/train.{language}").read_text().splitlines()[:count]
        for language in ("ko", "en")
    )
    return [
        {"question": f"Translate into English: {source}", "answer": target}
        for source, target in zip(korean, english, strict=True)
    ]


ROWS: dict[str, Callable[[int], list[Row]]] = {
    "word problems": word_problems,
    "GSM8K": gsm8k,
    "Korean-English": translation,
}


def _is_available(kind: str) -> bool:
    # The real rows are next to some checkouts only.
    return kind == "word problems" or DATA.is_dir()


def _prepare(kind: str, folder: Path, steps: int, tuning: str) -> TrainingTask:
    """Write the rows, and a model whose tokenizer is trained on them."""
    own = folder / kind.replace(" ", "-")
    own.mkdir()
    dataset, base = own / "rows.jsonl", own / "larger"
    rows = ROWS[kind](steps * ROWS_PER_STEP)
    dataset.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    larger = ("-m", "tests.benchmarks.trainers.larger_model", str(folder / "starter"), str(base))
    _python(*larger, "--rows", str(dataset))
    examples = load_examples(str(dataset), load_tokenizer(str(base)), MAX_LENGTH)
    assert not examples.truncated
    return TrainingTask(own, base, dataset, steps, tuning, examples.tokens)


def _describe(kind: str, task: TrainingTask) -> str:
    examples = load_examples(str(task.dataset), load_tokenizer(str(task.base)), MAX_LENGTH)
    lengths = [len(example.input_ids) for example in examples.examples]
    share = examples.loss_tokens / examples.tokens
    return (
        f"{kind}: {len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, "
        f"{statistics.mean(lengths):.0f} on average, {share:.0%} of them with loss"
    )


def train_with_trl(kind: str, task: TrainingTask, out: Path) -> str:
    """Train with TRL, as `plain_trl` configures it."""
    return _run_timed(
        *("tests.benchmarks.trainers.plain_trl", "--kind", kind, "--tuning", task.tuning, "--out", str(out)),
        *("--base", str(task.base), "--dataset", str(task.dataset), "--steps", str(task.steps)),
    )


def train_with_stage(changed: dict[str, Any], task: TrainingTask, out: Path) -> str:
    """Train with our stage, with defaults except for the changed fields."""
    stage = {
        "stage": "sft",
        "base": str(task.base),
        "dataset": str(task.dataset),
        "tuning": {"method": task.tuning},
        "batch_size": ROWS_PER_STEP,
        "max_steps": task.steps,
        "save_every_steps": 100_000,
    }
    out.mkdir()
    (out / "stage.json").write_text(json.dumps(stage | changed))
    return _run_timed("trainers.sft", "--config", str(out / "stage.json"), "--run-dir", str(out))


def train_with_packing(task: TrainingTask, out: Path) -> str:
    """Train with our stage and packing, with about the same number of rows per step."""
    tokens_per_step = task.tokens / task.steps
    sequences = max(1, round(tokens_per_step / MAX_LENGTH))
    return train_with_stage({"packing": True, "batch_size": sequences, "micro_batch_size": 1}, task, out)


PROGRAMS: dict[str, Callable[[TrainingTask, Path], str]] = {
    "TRL's defaults": partial(train_with_trl, "defaults"),
    "TRL, activations kept": partial(train_with_trl, "kept"),
    "TRL, activations kept, padding_free": partial(train_with_trl, "padding-free"),
    "our defaults": partial(train_with_stage, {}),
    "ours, rows padded (attention: sdpa)": partial(train_with_stage, {"attention": "sdpa"}),
    "ours, micro_batch_size 4": partial(train_with_stage, {"micro_batch_size": 4}),
    "ours, micro_batch_size 16": partial(train_with_stage, {"micro_batch_size": 16}),
    "ours, packing": train_with_packing,
}


def _rate(run: Callable[[TrainingTask, Path], str], task: TrainingTask, out: Path) -> TokenRate:
    lines = [line.split()[1:] for line in run(task, out).splitlines() if line.startswith("step ")]
    steps = [[float(value) for value in line] for line in lines]
    if run is not train_with_packing:
        assert steps[-1][2] == task.tokens, "the program did not train on every row once"
    (wall, cpu, before), (wall_end, cpu_end, after) = steps[WARM_UP_STEPS - 1], steps[-1]
    return TokenRate((after - before) / (cpu_end - cpu), (after - before) / (wall_end - wall))


def _run_timed(*arguments: str) -> str:
    return _python("-m", "tests.benchmarks.trainers.step_timer", *arguments)


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _print(title: str, rates: dict[str, list[TokenRate]]) -> None:
    first = rates[next(iter(PROGRAMS))]
    lines = [
        [
            program,
            f"{p50([rate.cpu for rate in each]):.0f}",
            f"{p50([rate.cpu / trl.cpu for rate, trl in zip(each, first, strict=True)]):.2f}",
            " ".join(f"{rate.cpu / trl.cpu:.2f}" for rate, trl in zip(each, first, strict=True)),
            f"{p50([rate.wall / trl.wall for rate, trl in zip(each, first, strict=True)]):.2f}",
        ]
        for program, each in rates.items()
    ]
    header = ["program", "tokens per CPU second", "this : TRL's defaults", "per round", "wall time"]
    print_table(title, header, lines)


if __name__ == "__main__":
    main()
