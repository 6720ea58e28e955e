"""How fast rows of ordinary, short lengths are trained: TRL as it comes against our `sft` stage as it comes.

All train the same model on the same rows, sixteen to an optimizer step, in fp32 and without saving, in turn.
What counts is the tokens of rows, not of padding, between the first steps and the last: for each second of
the processor's time, since on a shared machine the wall tells of others' work too.

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import p50, table
from tests.e2e.platform import ROOT
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.modeling.load import load_tokenizer
from trainers.rendering.sft_examples import load_examples

DATA = ROOT.parent / "shared" / "data"
ROWS_PER_STEP = 16
WARM_UP_STEPS = 3
MAX_LENGTH = 1024  # The default of TRL and of our stage.

Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """What is trained."""

    folder: Path
    base: Path
    dataset: Path
    steps: int
    tuning: str
    tokens: int
    """Of all rows."""


@dataclass(frozen=True)
class Rate:
    """Tokens of rows a second of the processor and of the wall, without the first steps."""

    cpu: float
    wall: float


def main() -> None:
    """Train by each program in turn, several times over, on each kind of rows, and print the rates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=[name for name in ROWS if _is_there(name)])
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        _python("-m", "trainers.starter", "--out", f"{name}/starter", "--steps", "1")
        for kind in options.rows:
            task = _prepare(kind, Path(name), options.steps, options.tuning)
            rates: dict[str, list[Rate]] = {program: [] for program in PROGRAMS}
            for number in range(options.rounds):
                for program, run in PROGRAMS.items():
                    rates[program].append(_rate(run, task, task.folder / f"{program}-{number}"))
                    print(f"{kind}, {program}: {rates[program][-1]}", file=sys.stderr)
            _print(f"{_described(kind, task)}; {options.tuning} tuning, {options.rounds} rounds", rates)


def word_problems(count: int) -> list[Row]:
    """Generated, of one to six sentences: most are short and some are long, as in most collections."""
    rng = random.Random(0)
    made = []
    for row in generate_problems(count, ProblemSplit.train, seed=1):
        times = rng.choices((1, 2, 3, 6), weights=(6, 3, 2, 1))[0]
        made.append({"question": " ".join([row["question"]] * times), "answer": row["answer"]})
    return made


def gsm8k(count: int) -> list[Row]:
    """The first of GSM8K's training rows."""
    lines = (DATA / "gsm8k/train.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


def translation(count: int) -> list[Row]:
    """The first sentences of a Korean-English news corpus."""
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


def _is_there(kind: str) -> bool:
    """The real rows stand beside some checkouts only."""
    return kind == "word problems" or DATA.is_dir()


def _prepare(kind: str, folder: Path, steps: int, tuning: str) -> Task:
    """The rows, and a model whose tokenizer has met them."""
    own = folder / kind.replace(" ", "-")
    own.mkdir()
    dataset, base = own / "rows.jsonl", own / "larger"
    rows = ROWS[kind](steps * ROWS_PER_STEP)
    dataset.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    larger = ("-m", "tests.benchmarks.larger_model", str(folder / "starter"), str(base))
    _python(*larger, "--rows", str(dataset))
    examples = load_examples(str(dataset), load_tokenizer(str(base)), MAX_LENGTH)
    assert not examples.truncated
    return Task(own, base, dataset, steps, tuning, examples.tokens)


def _described(kind: str, task: Task) -> str:
    examples = load_examples(str(task.dataset), load_tokenizer(str(task.base)), MAX_LENGTH)
    lengths = [len(example.input_ids) for example in examples.examples]
    share = examples.loss_tokens / examples.tokens
    return (
        f"{kind}: {len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, "
        f"{statistics.mean(lengths):.0f} in the mean, {share:.0%} of them with loss"
    )


def trl(kind: str, task: Task, out: Path) -> str:
    """TRL's trainer, as `plain_trl` sets it up."""
    return _timed(
        *("tests.benchmarks.plain_trl", "--kind", kind, "--tuning", task.tuning, "--out", str(out)),
        *("--base", str(task.base), "--dataset", str(task.dataset), "--steps", str(task.steps)),
    )


def ours(changed: dict[str, Any], task: Task, out: Path) -> str:
    """Our stage with its defaults but for what is changed."""
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
    (out / "asked.json").write_text(json.dumps(stage | changed))
    return _timed("trainers.sft", "--config", str(out / "asked.json"), "--run-dir", str(out))


def packed(task: Task, out: Path) -> str:
    """Our stage with packing, with as many sequences to a step as hold about as many rows."""
    tokens_per_step = task.tokens / task.steps
    sequences = max(1, round(tokens_per_step / MAX_LENGTH))
    return ours({"packing": True, "batch_size": sequences, "micro_batch_size": 1}, task, out)


PROGRAMS: dict[str, Callable[[Task, Path], str]] = {
    "TRL's defaults": partial(trl, "defaults"),
    "TRL, activations kept": partial(trl, "kept"),
    "TRL, activations kept, padding_free": partial(trl, "padding-free"),
    "our defaults": partial(ours, {}),
    "ours, rows padded (attention: sdpa)": partial(ours, {"attention": "sdpa"}),
    "ours, micro_batch_size 4": partial(ours, {"micro_batch_size": 4}),
    "ours, micro_batch_size 16": partial(ours, {"micro_batch_size": 16}),
    "ours, packing": packed,
}


def _rate(run: Callable[[Task, Path], str], task: Task, out: Path) -> Rate:
    lines = [line.split()[1:] for line in run(task, out).splitlines() if line.startswith("told ")]
    told = [[float(figure) for figure in line] for line in lines]
    if run is not packed:
        assert told[-1][2] == task.tokens, "the program did not train on every row once"
    (wall, cpu, before), (wall_end, cpu_end, after) = told[WARM_UP_STEPS - 1], told[-1]
    return Rate((after - before) / (cpu_end - cpu), (after - before) / (wall_end - wall))


def _timed(*arguments: str) -> str:
    return _python("-m", "tests.benchmarks.timed", *arguments)


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _print(title: str, rates: dict[str, list[Rate]]) -> None:
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
    header = ["program", "tokens a CPU second", "this : TRL's defaults", "of each round", "by the wall"]
    table(title, header, lines)


if __name__ == "__main__":
    main()
