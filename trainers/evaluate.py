"""Generate a completion for every held-out row and score it, for the model and an optional baseline.

Decoding is greedy, so that a score can be repeated. Predictions are appended to `predictions.jsonl` batch by
batch: the same command on the same run directory continues after the last batch.

    python -m trainers.evaluate --config evaluate.yaml --run-dir runs/first-score
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.scored_rows import JUDGES, Judge, load_scored_rows
from trainers.metrics.intervals import wilson_interval
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import ModelReference, load_tokenizer, pick_device
from trainers.rendering.render import PromptCompletion, tokenize_prompt
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

PREDICTIONS = "predictions.jsonl"
ROWS = "rows.jsonl"

Predictions = dict[tuple[str, int], str]
"""Completions by the model's role, `model` or `baseline`, and the row."""

logger = logging.getLogger("trainers")


def run(config: EvaluateConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Generate and score all rows, write `rows.jsonl` and return the result."""
    pairs = load_scored_rows(config)
    models = _list_models(config)
    predictions = _read_predictions(run_dir / PREDICTIONS)
    total = len(pairs) * len(models)
    events.write_progress(len(predictions), total)
    for by, reference in models.items():
        if any((by, pair.row) not in predictions for pair in pairs):
            _generate(by, reference, config, pairs, predictions, run_dir / PREDICTIONS, events, total)
    rows = [_score_row(pair, list(models), predictions, JUDGES[config.metric]) for pair in pairs]
    _publish_rows(run_dir / ROWS, rows)
    model = _summarize(rows, "model")
    baseline = None if config.baseline is None else _summarize(rows, "baseline")
    scores = {"score": model["score"]}
    if baseline is not None:
        scores["baseline_score"] = baseline["score"]
    events.write_metrics(total, total, scores)
    return {
        "stage": "evaluate",
        "metric": config.metric,
        "n": len(rows),
        "model": model,
        "baseline": baseline,
        "difference": None if baseline is None else model["score"] - baseline["score"],
        "rows": ROWS,
    }


def plan(config: EvaluateConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without generating."""
    pairs = load_scored_rows(config)
    tokenizer = load_tokenizer(config.model)
    return {
        "stage": "evaluate",
        "rows": len(pairs),
        "completions": len(pairs) * len(_list_models(config)),
        "longest_prompt_tokens": max(len(tokenize_prompt(pair, tokenizer)) for pair in pairs),
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
        "device": pick_device(config.queue).type,
    }


def _list_models(config: EvaluateConfig) -> dict[str, ModelReference]:
    models: dict[str, ModelReference] = {"model": config.model}
    if config.baseline is not None:
        models["baseline"] = config.baseline
    return models


def _read_predictions(path: Path) -> Predictions:
    return {(line["by"], line["row"]): line["prediction"] for line in files.read_lines(path)}


def _generate(
    by: str,
    reference: ModelReference,
    config: EvaluateConfig,
    pairs: list[PromptCompletion],
    predictions: Predictions,
    path: Path,
    events: EventWriter,
    total: int,
) -> None:
    generator = TextGenerator(reference, pick_device(config.queue), config.max_new_tokens)
    # The batches are those of an uninterrupted run, because padding can change the last bits of a logit.
    for batch in generator.split_into_batches(pairs, config.batch_size):
        if all((by, pair.row) in predictions for pair in batch):
            continue
        texts = generator.generate(batch)
        new = {(by, pair.row): text for pair, text in zip(batch, texts, strict=True)}
        files.append_lines(
            path, [{"by": by, "row": row, "prediction": text} for (_, row), text in new.items()]
        )
        predictions.update(new)
        events.write_progress(len(predictions), total)
        logger.info("%s: %d of %d completions", by, len(predictions), total)


def _score_row(
    pair: PromptCompletion, models: list[str], predictions: Predictions, judge: Judge
) -> dict[str, Any]:
    row: dict[str, Any] = {"row": pair.row, "prompt": pair.prompt, "reference": pair.completion_text}
    for by in models:
        prediction = predictions[by, pair.row]
        row[by] = {"prediction": prediction, "correct": judge.is_correct(prediction, pair.completion_text)}
    return row


def _publish_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    files.sync_folder(path.parent)


def _summarize(rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    n, correct = len(rows), sum(row[by]["correct"] for row in rows)
    return {"score": correct / n, "correct": correct, "n": n, "interval_95": wilson_interval(correct, n)}


if __name__ == "__main__":
    run_program(EvaluateConfig, run, plan)
