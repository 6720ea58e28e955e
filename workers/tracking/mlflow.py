"""MLflow: one run for each of ours, found again by its id as a tag, so that it is never made twice.

What a server has taken it never gives up. An attempt that resumes therefore leaves out the steps that
are there already: their numbers are the same, since resuming is exact.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from workers.tracking.protocol import Ending, Link, MlflowTarget, Point, Tracked, flat, numbers

# The server's limits for one request.
METRICS_AT_ONCE = 1000
PARAMS_AT_ONCE = 100
MAX_NAME_CHARACTERS = 250
MAX_VALUE_CHARACTERS = 6000
# It has no word for a run that waits to go on, and calls stopped what a person has stopped.
STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "paused": "KILLED"}


class MlflowService:
    """One attempt's way to an MLflow server."""

    def __init__(self, target: MlflowTarget, tracked: Tracked) -> None:
        self._target = target
        self._tracked = tracked
        self._client = MlflowClient(target.uri)
        self._run_id = ""
        self._sent: dict[str, int] = {}

    def start(self) -> Link:
        experiment_id = self._experiment_id()
        run = self._find_or_make(experiment_id)
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        self._log_config(run)
        self._sent = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        url = f"{self._target.url}/#/experiments/{experiment_id}/runs/{self._run_id}"
        return Link(run_id=self._run_id, url=url)

    def metrics(self, points: list[Point]) -> None:
        new = [
            Metric(_key(name), value, int(point.time.timestamp() * 1000), point.step)
            for point in points
            for name, value in point.values.items()
            if point.step > self._sent.get(_key(name), -1)
        ]
        for batch in _batches(new, METRICS_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=batch)

    def finish(self, ending: Ending) -> None:
        for name, value in numbers(ending.result).items():
            self._client.log_metric(self._run_id, _key(name), value, step=ending.step)
        if ending.error is not None:
            self._client.set_tag(self._run_id, "error", _text(ending.error))
        if ending.status in STATUS:
            self._client.set_terminated(self._run_id, STATUS[ending.status])

    def _experiment_id(self) -> str:
        name = self._target.experiment
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _find_or_make(self, experiment_id: str) -> Run:
        tracked = self._tracked
        same = f"tags.`tunesmith.run_id` = '{tracked.run_id}'"
        if found := self._client.search_runs([experiment_id], same, max_results=1):
            return found[0]
        tags = {"tunesmith.run_id": tracked.run_id}
        return self._client.create_run(
            experiment_id, tags=tags, run_name=f"{tracked.job_name}/{tracked.name}"
        )

    def _log_config(self, run: Run) -> None:
        """Parameters cannot change: what a later attempt has otherwise becomes a tag `changed.…`."""
        config = {_key(name): _text(value) for name, value in flat(self._tracked.config).items()}
        known = run.data.params
        new = [Param(name, value) for name, value in config.items() if name not in known]
        for batch in _batches(new, PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=batch)
        changed = {name: value for name, value in config.items() if known.get(name, value) != value}
        tags = {
            **{f"tunesmith.{name}": value for name, value in self._tracked.tags.items()},
            **{f"label.{name}": value for name, value in self._tracked.labels.items()},
            **{f"changed.{name}": value for name, value in changed.items()},
        }
        self._client.log_batch(self._run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _key(name: str) -> str:
    """A name that the server takes."""
    return re.sub(r"[^\w/. -]", "_", name)[:MAX_NAME_CHARACTERS]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:MAX_VALUE_CHARACTERS]


def _batches(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
