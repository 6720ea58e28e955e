"""Generate a completion for every row of a dataset, with a running engine.

Completions are appended to `predictions.jsonl` in the order of the rows: the same command on the same run
directory resumes after the last one. `engine_url` in the config names the engine, which a worker starts for
a job. By hand:

    python -m serving --engine hf --model PATH_OR_ID --port 8001
    python -m trainers.generate --config generate.yaml --run-dir runs/predictions
"""

import shutil
import time
from pathlib import Path
from typing import Any

from trainers.configs.stages.generate import GenerateConfig
from trainers.evaluation.row_completions import EngineEndpoint, complete_rows, load_prompts, skip_completed
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

PREDICTIONS = "predictions.jsonl"
CHECKPOINT_SECONDS = 60.0


def run(config: GenerateConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Generate the completions that are missing, and return their counts."""
    endpoint = _endpoint(config)
    output = run_dir / PREDICTIONS
    checkpoint = files.last_complete_checkpoint(run_dir)
    if checkpoint is not None and not output.exists():
        shutil.copyfile(checkpoint / PREDICTIONS, output)
    prompts = load_prompts(config)
    if (run_dir / files.LATER_STAGES).exists():
        # Importing torch takes seconds, which a stage without later ones need not spend.
        from trainers.preflight.start.later_stages import check_later_stages

        check_later_stages(run_dir)
    missing = skip_completed(prompts, output)
    n_kept = len(prompts) - len(missing)
    progress = _ProgressWriter(run_dir, events, len(prompts))
    progress.report(n_kept)
    complete_rows(config, missing, endpoint, output, lambda count: progress.report(n_kept + count))
    lines = files.read_lines(output)
    n_failed = sum(line["prediction"] is None for line in lines)
    if n_failed:
        events.write_warning(
            "rows_without_answer",
            f"{n_failed} of {len(lines)} rows have no completion: the engine rejected their requests. "
            f"The field `error` in {PREDICTIONS} contains the reason.",
        )
    return {
        "stage": "generate",
        "rows": len(lines),
        "failed": n_failed,
        "completion_tokens": sum(line.get("completion_tokens", 0) for line in lines),
        "predictions": PREDICTIONS,
    }


def plan(config: GenerateConfig) -> dict[str, Any]:
    """Return the resolved numbers of a run without sending a request."""
    return {
        "stage": "generate",
        "rows": len(load_prompts(config)),
        "max_new_tokens": config.max_new_tokens,
        "engine": config.engine,
        "concurrency": config.concurrency,
    }


class _ProgressWriter:
    """Writes progress, and now and then a checkpoint, from which another worker can resume."""

    def __init__(self, run_dir: Path, events: EventWriter, n_rows: int) -> None:
        self._run_dir = run_dir
        self._events = events
        self._n_rows = n_rows
        self._saved_at = time.monotonic()

    def report(self, n_completed: int) -> None:
        """Write the progress, and a checkpoint if the last one is older than `CHECKPOINT_SECONDS`."""
        self._events.write_progress(n_completed, self._n_rows)
        if time.monotonic() - self._saved_at < CHECKPOINT_SECONDS or n_completed == self._n_rows:
            return
        self._saved_at = time.monotonic()
        folder = self._run_dir / files.SCRATCH
        folder.mkdir(exist_ok=True)
        shutil.copyfile(self._run_dir / PREDICTIONS, folder / PREDICTIONS)
        files.publish_checkpoint(self._run_dir, n_completed, folder)
        files.prune_checkpoints(self._run_dir, 1)


def _endpoint(config: GenerateConfig) -> EngineEndpoint:
    if config.engine_url is None:
        raise ConfigInvalid(
            "engine_url is missing: this program sends requests to a running engine.",
            "Start one with `python -m serving --model … --port 8001`, and set engine_url: "
            "http://127.0.0.1:8001.",
        )
    model = config.engine_model or config.model
    if not isinstance(model, str):
        raise ConfigInvalid(
            "engine_model is missing: the engine serves the adapter under a name of its own.",
            "Set engine_model to the NAME of `python -m serving --adapter NAME=PATH`.",
        )
    return EngineEndpoint(config.engine_url.rstrip("/"), model)


if __name__ == "__main__":
    run_program(GenerateConfig, run, plan)
