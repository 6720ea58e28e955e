"""The values that a comparison pairs.

The value of most metrics is the mean over the rows, whose stored values suffice. That of a metric of the
corpus, such as BLEU, is not: the responses are scored again, which gives the statistics of each sentence.
"""

import math
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from trainers.comparison.common_rows import CommonRows, EvaluationsDiffer, evaluated_rows, model_row
from trainers.comparison.stored_evaluation import StoredEvaluation
from trainers.configs.metrics import AnyMetric, MetricConfig
from trainers.configs.metrics.translation import Bleu, Chrf, ChrfPlusPlus, LengthRatio, Ter
from trainers.evaluation.results import Score
from trainers.metrics.metric import MetricValues, ModelMetric
from trainers.metrics.table import make_metric, set_scale

OF_CORPUS = (Bleu, Chrf, ChrfPlusPlus, Ter, LengthRatio)
# Of the value; sums in another order differ by less.
TOLERANCE = 1e-9

_METRIC: TypeAdapter[MetricConfig] = TypeAdapter(AnyMetric)


def list_common_metrics(evaluations: Sequence[StoredEvaluation], wanted: Sequence[str] | None) -> list[str]:
    """Return the metrics to compare, in the order of the first evaluation; raises EvaluationsDiffer."""
    first, *others = evaluations
    common = [name for name in first.scores if all(name in other.scores for other in others)]
    if wanted is not None and (missing := [name for name in wanted if name not in common]):
        raise EvaluationsDiffer(
            f"Not all of the evaluations have the metric {missing[0]!r}; they have in common: "
            f"{', '.join(common) or 'none'}.",
            "Choose metrics that all of them have.",
        )
    chosen = common if wanted is None else [name for name in common if name in wanted]
    if not chosen:
        raise EvaluationsDiffer(
            "The evaluations have no metric in common.", "Evaluate the models with the same metrics."
        )
    return chosen


def load_values(
    evaluation: StoredEvaluation, common: CommonRows, metrics: Sequence[str]
) -> dict[str, MetricValues]:
    """Return the values of the common rows by metric, without metrics that cannot be computed on a part."""
    values = {name: _load_metric(evaluation, common, evaluation.scores[name]) for name in metrics}
    return {name: one for name, one in values.items() if one is not None}


def _load_metric(evaluation: StoredEvaluation, common: CommonRows, score: Score) -> MetricValues | None:
    role, rows = evaluation.model.role, common.rows[evaluation.label]
    config = _find_config(evaluation, score.metric)
    # The mean of equal rows, such as empty responses, equals the value of the corpus by coincidence.
    if isinstance(config, OF_CORPUS) or not _is_mean(evaluation, score):
        metric = make_metric(config) if config is not None else None
        # A metric of the model, such as perplexity, would need the model.
        if config is None or metric is None or isinstance(metric, ModelMetric):
            return None
        return set_scale(metric.score(evaluated_rows(rows, role)), config)
    row_values = [model_row(row, role).values.get(score.metric) for row in rows]
    known = [value for value in row_values if value is not None]
    values = MetricValues(
        value=math.fsum(known) / len(known) if known else 0.0,
        row_values=row_values,
        signature=score.signature,
        higher_is_better=score.higher_is_better,
        is_share=all(value in (0, 1) for value in known),
    )
    return values if config is None else set_scale(values, config)


def _is_mean(evaluation: StoredEvaluation, score: Score) -> bool:
    """Return whether a score is the mean of its rows' values."""
    values = [row.value(evaluation.model.role, score.metric) for row in evaluation.index]
    known = [value for value in values if value is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    return math.isclose(mean, score.value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _find_config(evaluation: StoredEvaluation, metric: str) -> MetricConfig | None:
    """Return the config of a metric; None if this version has no such metric."""
    for values in evaluation.result.metrics:
        try:
            config = _METRIC.validate_python(values)
        except ValidationError:
            continue
        if config.label == metric:
            return config
    return None
