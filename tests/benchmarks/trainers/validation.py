"""The speed of JSONL validation, compared with reading only: `json.loads` per line, and `load_dataset`.

Each program runs in a process of its own on one core, several rounds in turn. Rates are per CPU second, since
the cores are shared; memory is the peak of the whole process, imports included.

python -m tests.benchmarks.trainers.validation
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tests.benchmarks.report import p50, print_table
from trainers.data.files.jsonl import iter_rows, save_rows
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.data.validate import validate_file

REPOSITORY = Path(__file__).parents[3]
SHARED = Path(os.environ.get("TUNESMITH_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
OURS, PLAIN, DATASETS = "validation", "json.loads per line", "datasets.load_dataset"
MIB = 2**20


def main() -> None:
    """Write a file of each shape, measure each program on it, and print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", nargs=2, metavar=("PROGRAM", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(_measure(options.read[0], Path(options.read[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        for shape, make in (("chat of 3 turns", _chat), ("question and answer", _question_answer)):
            path = Path(name) / "rows.jsonl"
            save_rows(path, make(options.rows))
            _compare(shape, path, options.rows, options.rounds)


def _compare(shape: str, path: Path, rows: int, rounds: int) -> None:
    megabytes = path.stat().st_size / 1e6
    found: dict[str, list[dict[str, float]]] = {OURS: [], PLAIN: [], DATASETS: []}
    for _ in range(rounds):
        for program, measured in found.items():
            measured.append(_run(program, path))
    ours = p50([one["seconds"] for one in found[OURS]])
    print_table(
        f"{shape}: {rows:,} rows of {1e6 * megabytes / rows:.0f} bytes, medians of {rounds} rounds",
        ["program", "MB/s", "rate of validation : this", "peak MiB"],
        [
            [
                program,
                f"{megabytes / p50([one['seconds'] for one in measured]):.1f}",
                f"{p50([one['seconds'] for one in measured]) / ours:.2f}",
                f"{p50([one['peak_bytes'] for one in measured]) / MIB:.0f}",
            ]
            for program, measured in found.items()
        ],
    )


def _run(program: str, path: Path) -> dict[str, float]:
    child = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.trainers.validation", "--read", program, str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    values: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return values


def _measure(program: str, path: Path) -> dict[str, float]:
    """Measure the work only: modules are imported before the clock starts."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    read = {OURS: _validate, PLAIN: _load_lines, DATASETS: _load_dataset}[program](path)
    start = time.process_time()
    read()
    seconds = time.process_time() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def _validate(path: Path) -> Callable[[], object]:
    def read() -> None:
        report = validate_file(path)
        assert report.valid_row_count == report.row_count

    return read


def _load_lines(path: Path) -> Callable[[], object]:
    def read() -> None:
        with path.open("rb") as file:
            for line in file:
                json.loads(line)

    return read


def _load_dataset(path: Path) -> Callable[[], object]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()

    def read() -> None:
        with tempfile.TemporaryDirectory() as cache:
            load_dataset("json", data_files=str(path), split="train", cache_dir=cache)

    return read


def _chat(count: int) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_problems(count)):
        yield {
            "messages": [
                {"role": "system", "content": f"This is number {number}."},
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }


def _question_answer(count: int) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_problems(count)):
        yield {"question": f"{number}. {row['question']}", "answer": row["answer"]}


def _problems(count: int) -> Iterator[dict[str, str]]:
    """Return rows of GSM8K if they are available, else generated ones, which are shorter."""
    path = SHARED / "gsm8k" / "train.jsonl"
    rows = (
        [row for _, row in iter_rows(path)]
        if path.exists()
        else generate_problems(7000, ProblemSplit.train, seed=1)
    )
    return islice(cycle(rows), count)


if __name__ == "__main__":
    main()
