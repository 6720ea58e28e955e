"""Generate an answer to every held-out row and score it, by the model and, if named, by a baseline.

Generation is greedy, so a score can be repeated. Predictions are kept in `predictions.jsonl` as they come:
the same command on the same run directory goes on after the last batch.

    python -m trainers.evaluate --config evaluate.yaml --run-dir runs/first-score
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.metrics.intervals import wilson_interval
from trainers.metrics.maths import exact_match, final_answer
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import ModelReference, load_tokenizer, pick_device
from trainers.rendering.render import PromptCompletion, read_prompt_completions, tokenize_prompt
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

PREDICTIONS = "predictions.jsonl"
ROWS = "rows.jsonl"

Predictions = dict[tuple[str, int], str]

logger = logging.getLogger("trainers")


def evaluate(config: EvaluateConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    """Answer and score all rows, write `rows.jsonl` and return the result."""
    pairs = _pairs(config)
    contestants = _contestants(config)
    predictions = _kept_predictions(run_dir / PREDICTIONS)
    total = len(pairs) * len(contestants)
    report.progress(len(predictions), total)
    for by, reference in contestants.items():
        if any((by, pair.row) not in predictions for pair in pairs):
            _answer(by, reference, config, pairs, predictions, run_dir / PREDICTIONS, report, total)
    rows = [_scored(pair, list(contestants), predictions) for pair in pairs]
    _publish_rows(run_dir / ROWS, rows)
    return _result(config, rows, report, total)


def plan(config: EvaluateConfig) -> dict[str, Any]:
    """The resolved numbers of a run, without generating."""
    pairs = _pairs(config)
    tokenizer = load_tokenizer(config.model)
    return {
        "stage": "evaluate",
        "rows": len(pairs),
        "answers": len(pairs) * len(_contestants(config)),
        "longest_prompt_tokens": max(len(tokenize_prompt(pair, tokenizer)) for pair in pairs),
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
        "device": pick_device(config.queue).type,
    }


def _pairs(config: EvaluateConfig) -> list[PromptCompletion]:
    """The last turn of each row; raises DatasetInvalid for a row whose reference holds no number."""
    pairs = [turns[-1] for turns in read_prompt_completions(config.dataset, config.max_rows)]
    if not pairs:
        raise DatasetInvalid(f"The dataset {config.dataset} has no rows to score.", "Add rows.")
    for pair in pairs:
        if final_answer(pair.answer) is None:
            raise DatasetInvalid(
                f"Row {pair.row} of {config.dataset} has no number in its reference answer.",
                "Write the final answer after `####` or in a box, or score with another metric.",
            )
    return pairs


def _contestants(config: EvaluateConfig) -> dict[str, ModelReference]:
    contestants: dict[str, ModelReference] = {"model": config.model}
    if config.baseline is not None:
        contestants["baseline"] = config.baseline
    return contestants


def _kept_predictions(path: Path) -> Predictions:
    return {(line["by"], line["row"]): line["prediction"] for line in files.read_lines(path)}


def _answer(
    by: str,
    reference: ModelReference,
    config: EvaluateConfig,
    pairs: list[PromptCompletion],
    predictions: Predictions,
    path: Path,
    report: EventWriter,
    total: int,
) -> None:
    generator = TextGenerator(reference, pick_device(config.queue), config.max_new_tokens)
    # Batches are the same whatever was kept, because padding can change the last bits of a number.
    for batch in generator.batches(pairs, config.batch_size):
        if all((by, pair.row) in predictions for pair in batch):
            continue
        texts = generator.answer(batch)
        new = {(by, pair.row): text for pair, text in zip(batch, texts, strict=True)}
        files.append_lines(
            path, [{"by": by, "row": row, "prediction": text} for (_, row), text in new.items()]
        )
        predictions.update(new)
        report.progress(len(predictions), total)
        logger.info("%s: %d of %d answers", by, len(predictions), total)


def _scored(pair: PromptCompletion, contestants: list[str], predictions: Predictions) -> dict[str, Any]:
    row: dict[str, Any] = {"row": pair.row, "prompt": pair.prompt, "reference": pair.answer}
    for by in contestants:
        prediction = predictions[by, pair.row]
        row[by] = {"prediction": prediction, "correct": exact_match(prediction, pair.answer)}
    return row


def _publish_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    files.sync_folder(path.parent)


def _result(
    config: EvaluateConfig, rows: list[dict[str, Any]], report: EventWriter, total: int
) -> dict[str, Any]:
    model = _score(rows, "model")
    baseline = None if config.baseline is None else _score(rows, "baseline")
    values = {"score": model["score"]}
    if baseline is not None:
        values["baseline_score"] = baseline["score"]
    report.metrics(total, total, values)
    return {
        "stage": "evaluate",
        "metric": config.metric,
        "n": len(rows),
        "model": model,
        "baseline": baseline,
        "difference": None if baseline is None else model["score"] - baseline["score"],
        "rows": ROWS,
    }


def _score(rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    n, correct = len(rows), sum(row[by]["correct"] for row in rows)
    return {"score": correct / n, "correct": correct, "n": n, "interval_95": wilson_interval(correct, n)}


if __name__ == "__main__":
    run_program(EvaluateConfig, evaluate, plan)
