"""lm-eval's results as scores and rows of an evaluation, which tables, comparisons and gates can use."""

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.utils import handle_non_serializable

from trainers.configs.stages.harness.lm_eval import LmEvalConfig
from trainers.evaluation.provenance import describe_cpu
from trainers.evaluation.results import Interval, Score
from trainers.lm_eval.models import NO_RESPONSE, ModelIdentity
from trainers.metrics.metric import MetricValues
from trainers.statistics.score_interval import score_interval

ROLE = "model"
Z_95 = 1.959963984540054  # The standard normal quantile of 0.975.

Sample = Mapping[str, Any]
Results = Mapping[str, Any]


@dataclass(frozen=True)
class TaskMetricKey:
    """A metric of a task, after one of its filters."""

    task: str
    metric: str
    filter: str

    @property
    def label(self) -> str:
        """The name in results: the filter is left out where it is the only one."""
        suffix = "" if self.filter == "none" else f",{self.filter}"
        return f"{self.task}/{self.metric}{suffix}"


def list_scores(results: Results, identity: ModelIdentity) -> list[Score]:
    """Return the scores of all groups and tasks, in the order of lm-eval's results."""
    groups = results.get("groups") or {}
    scores = [_score_group(name, groups[name], results) for name in groups]
    tasks = [_score_task(name, samples, results, identity) for name, samples in results["samples"].items()]
    return [score for found in [*scores, *tasks] for score in found]


def list_rows(results: Results) -> list[dict[str, Any]]:
    """Return the lines of `rows.jsonl`: one for each row of each task, numbered over all tasks."""
    rows = [row for name, samples in results["samples"].items() for row in _task_rows(name, samples)]
    for name, scores in (results.get("groups") or {}).items():
        _add_group_values(name, scores, set(_members(name, results)), rows)
    return [{"row": number, **row} for number, row in enumerate(rows, start=1)]


def describe_provenance(config: LmEvalConfig, results: Results, identity: ModelIdentity) -> dict[str, Any]:
    """Return what the scores depend on, as JSON; `model` is what two evaluations differ in by intention."""
    samples = [sample for of_task in results["samples"].values() for sample in of_task]
    return {
        "harness": f"lm_eval {version('lm-eval')}",
        "dataset": {"sha256": _hash([sample["doc_hash"] for sample in samples])},
        "prompts_sha256": _hash([sample["prompt_hash"] for sample in samples]),
        "template_sha256": identity.template_sha256,
        "tasks": {name: _describe_task(name, results) for name in results["samples"]},
        "sampling": {
            **config.model_dump(include={"seed", "max_rows", "system_prompt", "fewshot_as_multiturn"}),
            "batch_size": None if config.uses_engine else config.batch_size,
        },
        "engine": {
            "kind": identity.engine,
            "dtype": identity.dtype,
            "hardware": describe_cpu() if not torch.cuda.is_available() else torch.cuda.get_device_name(),
            "transformers": version("transformers"),
            "torch": version("torch"),
        },
        "model": {"sha256": identity.model_sha256, "adapter_sha256": identity.adapter_sha256},
    }


def _describe_task(name: str, results: Results) -> dict[str, Any]:
    return {
        "version": results["versions"].get(name),
        "num_fewshot": results["n-shot"].get(name),
        "config_sha256": _config_hash(results, name),
        "generation": results["configs"][name].get("generation_kwargs"),
    }


def _score_group(name: str, values: Mapping[str, Any], results: Results) -> Iterator[Score]:
    members = [task for task in _members(name, results) if task in results["n-samples"]]
    n = sum(results["n-samples"][task]["effective"] for task in members)
    for key, value in values.items():
        metric, _, filter_name = key.partition(",")
        if not isinstance(value, float) or metric.endswith("_stderr") or not filter_name:
            continue
        error = values.get(f"{metric}_stderr,{filter_name}")
        interval = (value - Z_95 * error, value + Z_95 * error) if isinstance(error, float) else None
        yield Score(
            metric=TaskMetricKey(name, metric, filter_name).label,
            value=value,
            interval_95=interval,
            n=n,
            signature=f"lm_eval|version:{version('lm-eval')}|group:{name}|tasks:{len(members)}",
            details={"tasks": members},
        )


def _add_group_values(
    group: str, scores: Mapping[str, Any], members: set[str], rows: Sequence[dict[str, Any]]
) -> None:
    """Repeat the values of a group's tasks under its name, where its score is the mean of all their rows."""
    for key, score in scores.items():
        metric, _, filter_name = key.partition(",")
        found = [
            (row["models"][ROLE]["values"], value)
            for row in rows
            if (task := row["fields"]["task"]) in members
            for value in [row["models"][ROLE]["values"].get(TaskMetricKey(task, metric, filter_name).label)]
            if value is not None
        ]
        if found and math.isclose(statistics.fmean(value for _, value in found), score, abs_tol=1e-9):
            for values, value in found:
                values[TaskMetricKey(group, metric, filter_name).label] = value


def _members(group: str, results: Results) -> list[str]:
    """Return the tasks of a group, also those of the groups in it."""
    listed = results.get("group_subtasks", {}).get(group)
    return [group] if listed is None else [task for name in listed for task in _members(name, results)]


def _score_task(
    task: str, samples: Sequence[Sample], results: Results, identity: ModelIdentity
) -> Iterator[Score]:
    failed = sum(any(NO_RESPONSE in resps for resps in sample["resps"]) for sample in samples)
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    for filter_name in filters:
        of_filter = [sample for sample in samples if sample["filter"] == filter_name]
        for metric in of_filter[0]["metrics"]:
            key = TaskMetricKey(task, metric, filter_name)
            value = results["results"][task].get(f"{metric},{filter_name}")
            if not isinstance(value, int | float):
                continue
            values = [_number(sample[metric]) for sample in of_filter]
            yield Score(
                metric=key.label,
                value=float(value),
                interval_95=_interval(float(value), values),
                n=len(of_filter),
                failed=failed // len(filters),
                higher_is_better=bool(results["higher_is_better"].get(task, {}).get(metric, True)),
                signature=_signature(key, results, identity),
            )


def _signature(key: TaskMetricKey, results: Results, identity: ModelIdentity) -> str:
    parts = {
        "version": version("lm-eval"),
        "task": key.task,
        "task_version": results["versions"].get(key.task),
        "shots": results["n-shot"].get(key.task),
        "filter": key.filter,
        "config": _config_hash(results, key.task)[:12],
        "template": (identity.template_sha256 or "none")[:12],
    }
    return "lm_eval|" + "|".join(f"{name}:{value}" for name, value in parts.items())


def _interval(value: float, values: Sequence[float | None]) -> Interval | None:
    """Return the interval of a mean of rows; None for a metric that is not one."""
    known = [one for one in values if one is not None]
    if len(known) < len(values) or not math.isclose(statistics.fmean(known), value, abs_tol=1e-9):
        return None
    return score_interval(MetricValues(value, values, "", is_share=set(known) <= {0.0, 1.0}))


def _task_rows(task: str, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    by_row: dict[int, list[Sample]] = {}
    for sample in samples:
        by_row.setdefault(sample["doc_id"], []).append(sample)
    for position, of_row in sorted(by_row.items()):
        first = of_row[0]
        responses, log_probabilities = _responses(first)
        values = {
            TaskMetricKey(task, metric, sample["filter"]).label: number
            for sample in of_row
            for metric in sample["metrics"]
            if (number := _number(sample[metric])) is not None
        }
        fields = {
            "task": task,
            "task_row": position + 1,
            "doc": first["doc"],
            **{name: first[name] for name in ("doc_hash", "prompt_hash", "target_hash")},
            **({"log_probabilities": log_probabilities} if log_probabilities else {}),
        }
        yield {
            "prompt": _prompt(first["arguments"][0][0]),
            "reference": _reference(first),
            "fields": json.loads(json.dumps(fields, default=handle_non_serializable)),
            "models": {ROLE: {"responses": responses, "values": values}},
        }


def _responses(sample: Sample) -> tuple[list[str | None], list[float]]:
    """Return the generated texts, or the most likely choice and the log-probabilities of all choices."""
    resps = sample["resps"]
    if isinstance(resps[0][0], str):
        return [None if text == NO_RESPONSE else text for text in resps[0]], []
    scores = [float(one[0][0] if isinstance(one[0], tuple | list) else one[0]) for one in resps]
    best = max(range(len(scores)), key=scores.__getitem__)
    return [str(sample["arguments"][best][-1])], scores


def _reference(sample: Sample) -> str:
    target = sample["target"]
    choices = [arguments[-1] for arguments in sample["arguments"]]
    is_choice = isinstance(target, int) and not isinstance(target, bool) and len(choices) > 1
    return str(choices[target]) if is_choice and 0 <= target < len(choices) else str(target)


def _prompt(context: Any) -> list[dict[str, Any]]:
    """Return the messages that were sent, or the rendered prompt as one message."""
    if isinstance(context, tuple):  # lm-eval's JsonChatStr, the messages as JSON.
        messages: list[dict[str, Any]] = json.loads(context[0])
        return messages
    return [{"role": "user", "content": str(context)}]


def _number(value: Any) -> float | None:
    if hasattr(value, "item"):
        value = value.item()
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None


def _config_hash(results: Results, task: str) -> str:
    # Without what depends on the host: the functions' addresses, and the path of the data.
    config = {k: v for k, v in results["configs"][task].items() if k not in ("custom_dataset", "metadata")}
    return _hash(config)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=handle_non_serializable)
    return hashlib.sha256(text.encode()).hexdigest()
