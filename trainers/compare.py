"""Compare stored evaluations row by row; no model is needed.

Rows of two evaluations belong together if they have the same prompt and the same reference. The first
evaluation is compared with each other one.

    python -m trainers.compare --config compare.yaml --run-dir runs/compare
"""

from pathlib import Path
from typing import Any

from trainers.comparison.common_rows import (
    CommonRows,
    EvaluationsDiffer,
    list_common_clusters,
    load_common_rows,
    model_row,
    write_common_rows,
)
from trainers.comparison.compared_values import list_common_metrics, load_values
from trainers.comparison.stored_evaluation import StoredEvaluation, load_evaluation
from trainers.comparison.warnings import list_warnings
from trainers.configs.stages.evaluations.compare import CompareConfig
from trainers.evaluation.results import EvaluationResult, ModelScores, Score
from trainers.metrics.metric import MetricValues
from trainers.reports.evaluation_folder import write_evaluation_folder
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program
from trainers.statistics.comparison import compare_models
from trainers.statistics.score_interval import score_interval


def run(config: CompareConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Pair the rows, compare the values, write the reports and return the result."""
    evaluations = [load_evaluation(evaluation) for evaluation in config.evaluations]
    metrics = list_common_metrics(evaluations, config.metrics)
    common = load_common_rows(evaluations)
    loaded = {each.label: load_values(each, common, metrics) for each in evaluations}
    compared = [metric for metric in metrics if all(metric in own for own in loaded.values())]
    if not compared:
        raise EvaluationsDiffer(
            "None of the metrics can be computed on the common rows.", "Compare by other metrics."
        )
    values = {label: {metric: own[metric] for metric in compared} for label, own in loaded.items()}
    field, clusters = list_common_clusters(evaluations, common)
    result = EvaluationResult(
        stage="compare",
        n=common.n,
        models=[_summarize(each, common, values[each.label], clusters) for each in evaluations],
        differences=compare_models(values, clusters=clusters),
        clusters=field,
        warnings=list_warnings(evaluations, common, loaded, metrics),
        metrics=evaluations[0].result.metrics,
    )
    write_common_rows(run_dir / result.rows, evaluations, common, values)
    write_evaluation_folder(run_dir, result)
    events.write_progress(common.n, common.n)
    return result.model_dump(mode="json")


def plan(config: CompareConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without comparing."""
    evaluations = [load_evaluation(evaluation) for evaluation in config.evaluations]
    return {
        "stage": "compare",
        "evaluations": [each.label for each in evaluations],
        "metrics": list_common_metrics(evaluations, config.metrics),
        "rows": load_common_rows(evaluations).n,
    }


def _summarize(
    evaluation: StoredEvaluation,
    common: CommonRows,
    values: dict[str, MetricValues],
    clusters: list[str] | None,
) -> ModelScores:
    """Return the scores of an evaluation on the common rows."""
    rows = common.rows[evaluation.label]
    failed = sum(None in model_row(row, evaluation.model.role).responses for row in rows)
    scores = [
        Score(
            metric=metric,
            value=own.value,
            interval_95=score_interval(own, clusters=clusters),
            n=sum(value is not None for value in own.row_values),
            failed=failed,
            higher_is_better=own.higher_is_better,
            signature=own.signature,
        )
        for metric, own in values.items()
    ]
    return ModelScores(
        role=evaluation.label,
        model=evaluation.model.model,
        scores=scores,
        provenance=evaluation.model.provenance,
    )


if __name__ == "__main__":
    run_program(CompareConfig, run, plan)
