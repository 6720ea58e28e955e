"""Answer every row of a dataset by an engine that is started for it.

Answers are kept in `predictions.jsonl` as they come, in the order of the rows: the same command on the same
run directory goes on after the last one.

    python -m serving.batch.generate --config generate.yaml --run-dir runs/answers
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.batch import row_completions
from serving.engines import EngineConfig, find_engine
from serving.engines.child_engine import free_port, latest_model_name, run_engine
from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.generate import GenerateConfig
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

PREDICTIONS = "predictions.jsonl"
ENGINE_LOG = "engine.log"
HOST = "127.0.0.1"
CHECKPOINT_SECONDS = 60.0
BASE_NAME, ADAPTER_NAME = "base", "adapter"

Progress = Callable[[int, int], None]


def generate(config: GenerateConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    """Answer all rows and return how many have an answer."""
    checkpoint = files.last_complete_checkpoint(run_dir)
    if checkpoint is not None and not (run_dir / PREDICTIONS).exists():
        shutil.copyfile(checkpoint / PREDICTIONS, run_dir / PREDICTIONS)
    keeper = Keeper(run_dir, report)
    answer_rows(config, run_dir / PREDICTIONS, run_dir / ENGINE_LOG, keeper.show)
    lines = files.read_lines(run_dir / PREDICTIONS)
    failed = sum(line["prediction"] is None for line in lines)
    if failed:
        report.warning(
            "rows_without_answer",
            f"{failed} of {len(lines)} rows have no answer; `error` in {PREDICTIONS} says why.",
        )
    return {
        "stage": "generate",
        "rows": len(lines),
        "failed": failed,
        "completion_tokens": sum(line.get("completion_tokens", 0) for line in lines),
        "predictions": PREDICTIONS,
    }


def answer_rows(config: GenerateConfig, output: Path, log: Path, progress: Progress) -> None:
    """Start the engine, unless all rows have their answer already, and answer what is left."""
    asked = row_completions.questions(config)
    if not asked:
        raise DatasetInvalid(f"The dataset {config.dataset} has no rows to answer.", "Add rows.")
    left = row_completions.unanswered(asked, output)
    kept = len(asked) - len(left)
    progress(kept, len(asked))
    if not left:
        return
    adapters = {ADAPTER_NAME: config.model.adapter} if isinstance(config.model, AdaptedModel) else {}
    serve = EngineConfig(
        get_base_model(config.model), BASE_NAME, HOST, free_port(HOST), adapters, config.options
    )
    engine = find_engine(config.engine, config.engine_program)
    name = latest_model_name(engine, serve)
    with run_engine(engine, serve, log) as address:
        row_completions.answer(
            config, left, address, name, output, lambda done: progress(kept + done, len(asked))
        )


class Keeper:
    """Reports progress, and keeps what is there as a checkpoint from time to time, for another worker."""

    def __init__(self, run_dir: Path, report: EventWriter) -> None:
        self.run_dir = run_dir
        self.report = report
        self.kept_at = time.monotonic()

    def show(self, done: int, total: int) -> None:
        """So many rows have an answer."""
        self.report.progress(done, total)
        if time.monotonic() - self.kept_at < CHECKPOINT_SECONDS or done == total:
            return
        self.kept_at = time.monotonic()
        folder = self.run_dir / files.SCRATCH
        folder.mkdir(exist_ok=True)
        shutil.copyfile(self.run_dir / PREDICTIONS, folder / PREDICTIONS)
        files.publish_checkpoint(self.run_dir, done, folder)
        files.prune_checkpoints(self.run_dir, 1)


def plan(config: GenerateConfig) -> dict[str, Any]:
    """The resolved numbers of a run, without generating."""
    return {
        "stage": "generate",
        "rows": len(row_completions.questions(config)),
        "max_new_tokens": config.max_new_tokens,
        "engine": config.engine,
        "concurrency": config.concurrency,
    }


if __name__ == "__main__":
    run_program(GenerateConfig, generate, plan)
