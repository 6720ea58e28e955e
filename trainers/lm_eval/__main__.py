"""Score a model on tasks of EleutherAI's evaluation harness (lm-eval): stock tasks, or own ones.

Responses are written as they arrive: the same command on the same run directory asks only for those that are
missing. With the backends `completions` and `chat_completions`, `engine_url` in the config names a running
engine, which a worker starts for a job.

    python -m trainers.lm_eval --config lm_eval.yaml --run-dir runs/gsm8k
"""

import os

# lm-eval draws progress bars, of which a log file keeps every state; progress is an event here.
os.environ["TQDM_MININTERVAL"] = "60"

import logging
import random
from pathlib import Path
from typing import Any

from trainers.configs.base import AdaptedModel, ModelRef
from trainers.configs.stages.harness.lm_eval import LmEvalConfig
from trainers.evaluation.checkpoints import CompletionProgress, restore_completions
from trainers.evaluation.results import EvaluationResult, ModelScores
from trainers.evaluation.scores import publish_rows
from trainers.runtime.errors import EngineFailed, first_line
from trainers.runtime.events import MAX_METRICS, EventWriter
from trainers.runtime.program import run_program

ROWS = "rows.jsonl"


def run(config: LmEvalConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Ask the model for what is missing, write `rows.jsonl` and return the result."""
    from trainers.lm_eval.models import ENGINE_ERRORS, open_model
    from trainers.lm_eval.outcome import describe_provenance, list_rows, list_scores
    from trainers.lm_eval.response_cache import ResponseCache
    from trainers.lm_eval.tasks import check_response_lengths, count_requests, load_tasks
    from trainers.reports.evaluation_folder import write_evaluation_folder

    tasks = load_tasks(config)
    model = open_model(config)
    check_response_lengths(tasks, model.lm)
    output = run_dir / model.identity.file_name
    restore_completions(output)
    progress = CompletionProgress(output, events, count_requests(tasks, config.max_rows))
    truncations = _TruncationCounter()
    logging.getLogger("lm_eval").addHandler(truncations)
    try:
        with ResponseCache(output, progress.report) as cache:
            cache.attach(model.lm)
            results = _evaluate(config, model.lm, tasks)
    except ENGINE_ERRORS as error:
        raise EngineFailed(
            f"The engine at {config.engine_url} failed: {first_line(error)}.",
            "Start the same command again: it resumes after the last response that was written.",
        ) from error
    rows = list_rows(results)
    publish_rows(run_dir / ROWS, rows)
    scores = list_scores(results, model.identity)
    shown = {score.metric: score.value for score in scores[:MAX_METRICS]}
    events.write_metrics(len(rows), len(rows), shown)
    warnings = truncations.messages()
    for message in warnings:
        events.write_warning("prompts_truncated", message)
    scored = ModelScores(
        role="model",
        model=_describe(config.model),
        scores=scores,
        provenance=describe_provenance(config, results, model.identity),
    )
    result = EvaluationResult(stage="lm_eval", n=len(rows), models=[scored], warnings=warnings, rows=ROWS)
    write_evaluation_folder(run_dir, result)
    return result.model_dump(mode="json")


def plan(config: LmEvalConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without asking the model."""
    from trainers.lm_eval.tasks import count_rows, load_tasks

    return {
        "stage": "lm_eval",
        "tasks": count_rows(load_tasks(config), config.max_rows),
        "backend": config.backend,
        "engine": config.engine if config.uses_engine else None,
    }


def _evaluate(config: LmEvalConfig, model: Any, tasks: dict[str, Any]) -> dict[str, Any]:
    import numpy
    import torch
    from lm_eval.evaluator import evaluate

    random.seed(config.seed)
    numpy.random.seed(config.seed)
    torch.manual_seed(config.seed)
    results: dict[str, Any] = evaluate(
        lm=model,
        task_dict=tasks,
        limit=config.max_rows,
        # Our intervals come from the rows; lm-eval's bootstrap takes seconds for each metric.
        bootstrap_iters=0,
        system_instruction=config.system_prompt,
        apply_chat_template=config.chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn and config.chat_template,
    )
    return results


def _describe(model: ModelRef) -> str:
    """Return a model as a person reads it; a folder is named by its last parts, as the others are private."""
    if isinstance(model, AdaptedModel):
        return f"{_describe(model.adapter)} on {_describe(model.base)}"
    return "/".join(Path(str(model)).parts[-2:])


class _TruncationCounter(logging.Handler):
    """Counts the messages in which lm-eval reports that it has shortened a prompt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count the message if it is about a truncation."""
        self._count += "truncat" in record.getMessage().lower()

    def messages(self) -> list[str]:
        """Return the warning, if there is one."""
        if not self._count:
            return []
        return [
            "Prompts were longer than the model's context, and lm-eval has cut their beginning off, "
            f"{self._count} times. Set num_fewshot lower, or max_new_tokens."
        ]


if __name__ == "__main__":
    run_program(LmEvalConfig, run, plan)
