"""The time from a file of rows to tokens: our cache of rendered datasets against TRL's own preparation.

Both start from the same JSONL file of questions and answers, use all cores, and end with the same tokens and
labels in Arrow. "Row by row" renders one row after the other in one process, as earlier versions did. CPU
time includes that of all children; wall time also includes other work on the machine.

python -m tests.benchmarks.trainers.dataset_preparation --rows 7473
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars, load_dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from tests.benchmarks.report import print_table
from tests.e2e.platform import ROOT
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.modeling.load import load_tokenizer
from trainers.rendering.cache.folder import RowCache
from trainers.rendering.examples.sft import load_examples
from trainers.rendering.render import read_prompt_completions, render_example

MAX_LENGTH = 1024


@dataclass(frozen=True)
class Measurement:
    """Seconds of CPU and of the clock, and what was made."""

    cpu_seconds: float
    wall_seconds: float
    result: Any


def main() -> None:
    """Prepare the same rows in each way, and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=7473)
    parser.add_argument("--data", type=Path, help="JSONL of `question` and `answer`; default: generated rows")
    parser.add_argument("--base", type=Path, help="model; default: the starter model")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        folder = Path(name)
        base = options.base or _make_starter(folder)
        dataset = _write_rows(folder / "rows.jsonl", options.data, options.rows)
        tokenizer = load_tokenizer(str(base))
        cache = RowCache(folder / "cache")
        by_row = _measure(lambda: _render_one_by_one(dataset, tokenizer))
        trl = _measure(lambda: _prepare_by_trl(dataset, base, tokenizer, folder))
        first = _measure(lambda: load_examples(str(dataset), tokenizer, MAX_LENGTH, cache=cache))
        second = _measure(lambda: load_examples(str(dataset), tokenizer, MAX_LENGTH, cache=cache))
        assert list(first.result.rendered) == by_row.result
        for column in ("input_ids", "labels"):
            assert trl.result[column] == first.result.mapped.table[column].to_pylist(), column
        _print(options.rows, by_row, {"TRL": trl, "ours, first start": first, "ours, second start": second})


def _print(rows: int, by_row: Measurement, others: dict[str, Measurement]) -> None:
    print_table(
        f"{rows} rows, {len(os.sched_getaffinity(0))} cores",
        ["way", "CPU µs per row", "wall s", "row by row : this, CPU", "row by row : this, wall"],
        [
            [
                name,
                f"{each.cpu_seconds / rows * 1e6:.0f}",
                f"{each.wall_seconds:.2f}",
                f"{by_row.cpu_seconds / each.cpu_seconds:.1f}",
                f"{by_row.wall_seconds / each.wall_seconds:.1f}",
            ]
            for name, each in {"row by row": by_row, **others}.items()
        ],
    )


def _measure(work: Callable[[], Any]) -> Measurement:
    cpu, wall = _cpu_seconds(), time.monotonic()
    result = work()
    return Measurement(_cpu_seconds() - cpu, time.monotonic() - wall, result)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _render_one_by_one(dataset: Path, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    turns = read_prompt_completions(str(dataset))
    return [render_example(pair, tokenizer, MAX_LENGTH) for pairs in turns for pair in pairs]


def _prepare_by_trl(dataset: Path, base: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Any:
    """Return TRL's prepared rows; its trainer needs a model, which is tiny."""
    rows = load_dataset("json", data_files=str(dataset), split="train", cache_dir=str(folder / "trl"))

    def split(row: dict[str, Any]) -> dict[str, Any]:
        turn = {"prompt": [{"role": "user", "content": row["question"]}]}
        return turn | {"completion": [{"role": "assistant", "content": row["answer"]}]}

    arguments = SFTConfig(
        output_dir=str(folder / "out"),
        max_length=MAX_LENGTH,
        dataset_num_proc=len(os.sched_getaffinity(0)),
        completion_only_loss=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)),
        args=arguments,
        train_dataset=rows.map(split, remove_columns=rows.column_names, num_proc=arguments.dataset_num_proc),
        processing_class=tokenizer,
    )
    return trainer.train_dataset


def _write_rows(path: Path, data: Path | None, count: int) -> Path:
    if data is None:
        rows = [dict(row) for row in generate_problems(min(count, 2000), ProblemSplit.train, seed=1)]
    else:
        rows = [json.loads(line) for line in data.read_text().splitlines()]
    path.write_text("".join(json.dumps(rows[i % len(rows)]) + "\n" for i in range(count)))
    return path


def _make_starter(folder: Path) -> Path:
    command = [sys.executable, "-m", "trainers.starter", "--out", str(folder / "starter"), "--steps", "1"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder / "starter"


if __name__ == "__main__":
    main()
