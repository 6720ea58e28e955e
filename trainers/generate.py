"""Generate a completion for every row of a dataset, with a running engine.

Completions are appended to `predictions.jsonl` in the order of the rows: the same command on the same run
directory resumes after the last one. `engine_url` in the config names the engine, which a worker starts for
a job. By hand:

    python -m serving --engine hf --model PATH_OR_ID --port 8001
    python -m trainers.generate --config generate.yaml --run-dir runs/predictions
"""

from pathlib import Path
from typing import Any

from trainers.configs.stages.generate import GenerateConfig
from trainers.evaluation.checkpoints import CompletionProgress, restore_completions
from trainers.evaluation.row_completions import complete_rows, load_prompts, skip_completed
from trainers.runtime import run_dir as files
from trainers.runtime.endpoints import Endpoint
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

PREDICTIONS = GenerateConfig.completions_file


def run(config: GenerateConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Generate the completions that are missing, and return their counts."""
    endpoint = _endpoint(config)
    output = run_dir / PREDICTIONS
    restore_completions(output)
    prompts = load_prompts(config)
    if (run_dir / files.LATER_STAGES).exists():
        # Importing torch takes seconds, which a stage without later ones need not spend.
        from trainers.preflight.start.later_stages import check_later_stages

        check_later_stages(run_dir)
    missing = skip_completed(prompts, output)
    n_kept = len(prompts) - len(missing)
    progress = CompletionProgress(output, events, len(prompts))
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


def _endpoint(config: GenerateConfig) -> Endpoint:
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
    return Endpoint(f"{config.engine_url.rstrip('/')}/v1", model, is_engine=True)


if __name__ == "__main__":
    run_program(GenerateConfig, run, plan)
