"""Generate a completion for every held-out row and score it, for the model and an optional baseline.

Decoding is greedy, so that a score can be repeated. Predictions are appended to `predictions.jsonl` batch by
batch: the same command on the same run directory continues after the last batch.

    python -m trainers.evaluate --config evaluate.yaml --run-dir runs/first-score
"""

import logging
from pathlib import Path
from typing import Any

from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.results import EvaluationResult, ModelScores
from trainers.evaluation.scored_rows import load_scored_rows
from trainers.evaluation.scores import describe_model, list_rows, list_scores, measure, publish_rows
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import ModelReference, load_tokenizer, pick_device
from trainers.rendering.render import PromptCompletion, tokenize_prompt
from trainers.reports.evaluation_folder import write_evaluation_folder
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program
from trainers.statistics.comparison import compare_models

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
    responses = {by: {pair.row: [predictions[by, pair.row]] for pair in pairs} for by in models}
    values = {by: measure(config.metrics, pairs, responses[by]) for by in models}
    publish_rows(run_dir / ROWS, list_rows(pairs, responses, values))
    scores = [
        ModelScores(role=by, model=describe_model(reference), scores=list_scores(values[by], responses[by]))
        for by, reference in models.items()
    ]
    events.write_metrics(
        total, total, {f"{one.role}/{score.metric}": score.value for one in scores for score in one.scores}
    )
    result = EvaluationResult(
        stage="evaluate",
        n=len(pairs),
        models=scores,
        differences=compare_models(values),
        metrics=[metric.model_dump(mode="json") for metric in config.metrics],
        rows=ROWS,
    )
    write_evaluation_folder(run_dir, result)
    return result.model_dump(mode="json")


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


if __name__ == "__main__":
    run_program(EvaluateConfig, run, plan)
