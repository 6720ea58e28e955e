"""What a gate decides on, as far as it is known when a job is posted."""

from dataclasses import dataclass
from typing import Any

from app.jobs.graph.resolved_stage import ResolvedStage
from app.tables import Dataset
from trainers.configs import EvaluateConfig, LmEvalConfig
from trainers.configs.metrics.base import MetricScale
from trainers.configs.stages.evaluations.early_stop import EarlyStop
from trainers.configs.stages.harness.lm_eval import MODEL, HarnessBackend
from trainers.configs.stages.harness.measures import describe_measures, find_measure
from trainers.configs.stages.harness.tasks import HarnessTask


@dataclass(frozen=True)
class GatedEvaluation:
    """What a gate decides on: a stage that evaluates, its metric, and its rows as far as they are known."""

    name: str
    metric: str
    scale: MetricScale
    models: dict[str, Any]
    """References of the models, by role."""
    datasets: tuple[Any, ...]
    """References of the datasets whose rows are scored."""
    source: Any
    """Equal for two evaluations of the same rows."""
    dataset: Dataset | None
    """The one dataset of all rows; None if an earlier stage produces it, or if tasks have the rows."""
    rows: int | None
    """Number of rows that the metric is computed from; None if it is not known."""
    early_stop: EarlyStop | None = None
    """The condition under which the evaluation ends before its last row."""
    has_row_values: bool = True
    """Whether the metric has the rows' values that an interval and a paired comparison need."""


class MetricUnknown(ValueError):
    """The stage does not have the metric; the message says which ones it has."""


def describe_evaluation(stage: ResolvedStage, metric: str | None) -> GatedEvaluation | None:
    """Return a stage's evaluation by a metric; None if it evaluates no model; raises MetricUnknown."""
    if isinstance(stage.config, EvaluateConfig):
        return _describe_evaluate(stage, stage.config, metric)
    if isinstance(stage.config, LmEvalConfig):
        return _describe_lm_eval(stage, stage.config, metric)
    return None


def _describe_evaluate(stage: ResolvedStage, config: EvaluateConfig, wanted: str | None) -> GatedEvaluation:
    metric = next((one for one in config.metrics if wanted in (None, one.label)), None)
    if metric is None:
        raise MetricUnknown(", ".join(one.label for one in config.metrics))
    dataset = stage.datasets.get("dataset")
    return GatedEvaluation(
        name=stage.name,
        metric=metric.label,
        scale=metric.scale,
        models=dict(config.models),
        datasets=(config.dataset,),
        source=config.dataset,
        dataset=dataset,
        rows=_count(dataset, config.max_rows),
        early_stop=_find_early_stop(config),
    )


def _find_early_stop(config: EvaluateConfig) -> EarlyStop | None:
    """Return the early stop with the name of its metric."""
    if config.early_stop is None:
        return None
    return config.early_stop.model_copy(update={"metric": config.early_stop_metric.label})


def _describe_lm_eval(stage: ResolvedStage, config: LmEvalConfig, wanted: str | None) -> GatedEvaluation:
    measure = find_measure(config.tasks, wanted)
    if measure is None:
        raise MetricUnknown(describe_measures(config.tasks))
    label = measure.label.partition("/")[0]
    own = next(((at, task) for at, task in enumerate(config.tasks) if task.label == label), None)
    tasks = list(config.tasks) if own is None else [own[1]]
    prompts = config.model_dump(
        include={"num_fewshot", "chat_template", "fewshot_as_multiturn", "system_prompt"}
    )
    return GatedEvaluation(
        name=stage.name,
        metric=measure.label,
        scale=measure.scale,
        models={MODEL: config.model},
        datasets=tuple(config.scored_datasets),
        # Messages and a rendered prompt are different prompts.
        source=(tasks, prompts, config.backend is HarnessBackend.chat_completions),
        dataset=None,
        rows=_count(_find_scored(stage, *own), config.max_rows) if own is not None else None,
        has_row_values=measure.has_row_values,
    )


def _find_scored(stage: ResolvedStage, position: int, task: HarnessTask) -> Dataset | None:
    """Return the dataset whose rows an own task scores, if it exists."""
    definition = task.definition
    if definition is None:
        return None
    splits = {part.split: at for at, part in enumerate(task.data or ())}
    scored = next((s for s in (definition.test_split, definition.validation_split) if s in splits), None)
    return stage.datasets.get(f"tasks.{position}.data.{splits[scored]}.dataset") if scored else None


def _count(dataset: Dataset | None, max_rows: int | None) -> int | None:
    return None if dataset is None else min(dataset.row_count, max_rows or dataset.row_count)
