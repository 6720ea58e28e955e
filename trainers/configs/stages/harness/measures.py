"""What the tasks of lm-eval measure, as far as a config says: the names and scales of their scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.configs.metrics.base import MetricScale
from trainers.configs.stages.harness.tasks import HarnessTask, TaskDefinition, TaskMetric

# lm-eval's defaults by the output type (`lm_eval.api.registry.DEFAULT_METRIC_REGISTRY`).
DEFAULT_METRICS = {
    "generate_until": ("exact_match",),
    "multiple_choice": ("acc", "acc_norm"),
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}
NO_FILTER = "none"
UNKNOWN_SCALE = MetricScale(low=-math.inf, high=None, is_share=False)
PERPLEXITY = MetricScale(low=1.0, high=None, higher_is_better=False, is_share=False)
SCALES = {
    "exact_match": MetricScale(),
    "acc": MetricScale(),
    "acc_norm": MetricScale(),
    "acc_mutual_info": MetricScale(),
    "f1": MetricScale(is_share=False),
    "mcc": MetricScale(low=-1.0, is_share=False),
    "brier_score": MetricScale(high=2.0, higher_is_better=False, is_share=False),
    "bleu": MetricScale(high=100.0, is_share=False),
    "chrf": MetricScale(high=100.0, is_share=False),
    "ter": MetricScale(high=None, higher_is_better=False, is_share=False),
    "perplexity": PERPLEXITY,
    "word_perplexity": PERPLEXITY,
    "byte_perplexity": PERPLEXITY,
    "bits_per_byte": MetricScale(high=None, higher_is_better=False, is_share=False),
}


@dataclass(frozen=True)
class TaskMeasure:
    """A score of an `lm_eval` stage."""

    label: str
    scale: MetricScale = UNKNOWN_SCALE
    has_row_values: bool = True
    """Whether the score is a mean of rows' values, which an interval and a paired comparison need."""


def list_measures(definition: TaskDefinition) -> list[TaskMeasure]:
    """Return the scores of an own task: one for each metric after each filter, in the order of its result."""
    defaults = [TaskMetric(metric=name) for name in DEFAULT_METRICS[definition.output_type]]
    filters = [chain.name for chain in definition.filter_list or ()] or [NO_FILTER]
    return [
        _measure(definition.task, metric, name)
        for name in filters
        for metric in definition.metric_list or defaults
    ]


def _measure(task: str, metric: TaskMetric, filter_name: str) -> TaskMeasure:
    label = f"{task}/{metric.metric}" + ("" if filter_name == NO_FILTER else f",{filter_name}")
    scale = SCALES[metric.metric]
    is_default = metric.higher_is_better in (None, scale.higher_is_better)
    if metric.aggregation not in (None, "mean") or not is_default:
        return TaskMeasure(label)
    return TaskMeasure(label, scale, has_row_values=scale.is_share)


def find_measure(tasks: Sequence[HarnessTask], wanted: str | None) -> TaskMeasure | None:
    """Return the score with this name, by default the first one; None if the tasks do not have it.

    The metrics of a stock task are known only where lm-eval is installed: any name that begins with the
    task's is accepted, and, as a group or a tag stands for tasks with other names, any task's.
    """
    first = tasks[0]
    if wanted is None:
        return TaskMeasure(first.label) if first.definition is None else list_measures(first.definition)[0]
    known = [one for task in tasks if task.definition is not None for one in list_measures(task.definition)]
    if (measure := next((one for one in known if one.label == wanted), None)) is not None:
        return measure
    name, slash, metric = wanted.partition("/")
    stock = [task for task in tasks if task.definition is None]
    has_groups = any(task.data is None for task in stock)
    is_own = any(task.definition is not None and task.label == name for task in tasks)
    if not slash or not metric or is_own or not (has_groups or name in {task.label for task in stock}):
        return None
    return TaskMeasure(wanted)


def describe_measures(tasks: Sequence[HarnessTask]) -> str:
    """Return the names of the scores as a list in words; those of stock tasks as a pattern."""
    names = [
        name
        for task in tasks
        for name in (
            [f"{task.label}/<metric>"]
            if task.definition is None
            else [one.label for one in list_measures(task.definition)]
        )
    ]
    return ", ".join(names)
