"""Score a file of predictions, without a model or an engine.

    python -m trainers.evaluate --predictions rows.jsonl --metric bleu --metric exact_match
    python -m trainers.evaluate --predictions rows.jsonl --metric '{"metric": "f1", "unit": "characters"}'

The table is printed; with --run-dir, `result.json` and `rows.jsonl` are written as by an evaluation.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from trainers.configs.metrics import MetricConfig, Metrics
from trainers.evaluation.predictions.prediction_file import Predictions, read_predictions
from trainers.evaluation.results import EvaluationResult, ModelScores
from trainers.evaluation.scored_rows import check_scorable
from trainers.evaluation.scores import Values, list_rows, list_scores, measure, publish_rows
from trainers.metrics.metric import ModelContext
from trainers.runtime import run_dir as files
from trainers.runtime.command_line import make_help, make_typer
from trainers.runtime.errors import ConfigInvalid, ProgramError

ROWS = "rows.jsonl"
_METRICS: TypeAdapter[list[MetricConfig]] = TypeAdapter(Metrics)


def main() -> None:
    """Run the command line and exit the process."""
    command_line = make_typer()
    command_line.command(help=make_help(__doc__))(score_command)
    command_line(prog_name="python -m trainers.evaluate")


def score_command(
    predictions: Annotated[Path, typer.Option(help="JSONL file with a prediction on each line.")],
    metric: Annotated[list[str], typer.Option(help="Kind of a metric, or its config as JSON; repeatable.")],
    run_dir: Annotated[Path | None, typer.Option(help="Folder for result.json and rows.jsonl.")] = None,
) -> None:
    """Score a file; exit with 1 and a message for one that cannot be scored."""
    try:
        result = score_file(predictions, parse_metrics(metric), run_dir)
    except ProgramError as error:
        sys.stderr.write(f"{error.message}\n{error.hint or ''}\n")
        raise typer.Exit(1) from None
    sys.stdout.write(render_table(result))


def parse_metrics(texts: list[str]) -> list[MetricConfig]:
    """Return the metrics that the command line names; raises ConfigInvalid."""
    try:
        return _METRICS.validate_python(
            [json.loads(text) if text.lstrip().startswith("{") else text for text in texts]
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--metric {texts[int(first['loc'][0])]}" if first["loc"] else "--metric"
        raise ConfigInvalid(f"{option}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise ConfigInvalid(f"--metric is not JSON: {error}", "Quote it for the shell.") from None


def score_file(path: Path, metrics: list[MetricConfig], run_dir: Path | None = None) -> EvaluationResult:
    """Score all models of a file and compare the first with the others; write the result to `run_dir`.

    Raises a ProgramError for a line that cannot be read or that a metric cannot score.
    """
    predictions = read_predictions(path)
    check_scorable(predictions.pairs, metrics, str(path))
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
    values = {role: _measure(role, predictions, metrics, run_dir) for role in predictions.responses}
    result = make_result(predictions, values)
    if run_dir is not None:
        publish_rows(
            run_dir / ROWS,
            list_rows(predictions.pairs, predictions.responses, values, predictions.tool_calls),
        )
        files.write_result(run_dir, result.model_dump(mode="json"))
    return result


def make_result(predictions: Predictions, values: dict[str, Values]) -> EvaluationResult:
    """Return the scores and the paired differences."""
    # Importing scipy takes a second.
    from trainers.statistics.comparison import compare_models

    models = [
        ModelScores(
            role=role,
            model=f"predictions {predictions.sha256[:12]}",
            scores=list_scores(values[role], predictions.responses[role]),
            provenance={"predictions_sha256": predictions.sha256},
        )
        for role in values
    ]
    differences = compare_models(values)
    return EvaluationResult(
        stage="evaluate", n=len(predictions.pairs), models=models, differences=differences, rows=ROWS
    )


def render_table(result: EvaluationResult) -> str:
    """Return the scores, the differences and the signatures as text."""
    rows = [("model", "metric", "value", "95 % interval", "n", "failed")]
    rows += [
        (
            model.role,
            score.metric,
            f"{score.value:.4f}",
            _interval(score.interval_95),
            str(score.n),
            str(score.failed),
        )
        for model in result.models
        for score in model.scores
    ]
    lines = _align(rows)
    if result.differences:
        compared = [("difference", "metric", "value", "95 % interval", "p", "wins/losses/ties")]
        compared += [
            (
                f"{one.role} - {one.other}",
                one.metric,
                f"{one.difference:+.4f}",
                _interval(one.interval_95),
                f"{one.p_adjusted:.4f}",
                f"{one.wins}/{one.losses}/{one.ties}",
            )
            for one in result.differences
        ]
        lines += ["", *_align(compared)]
    signatures = [f"{score.metric}: {score.signature}" for score in result.models[0].scores]
    return "\n".join([*lines, "", *signatures]) + "\n"


def _measure(
    role: str, predictions: Predictions, metrics: list[MetricConfig], run_dir: Path | None
) -> Values:
    others = {name: one for name, one in predictions.responses.items() if name != role}
    return measure(
        metrics,
        predictions.pairs,
        predictions.responses[role],
        ModelContext(role, run_dir),
        others,
        predictions.tool_calls[role],
    )


def _interval(interval: Any) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
