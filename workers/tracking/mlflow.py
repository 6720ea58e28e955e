"""MLflow: one MLflow run per run, found by a tag with our run id.

MLflow cannot delete metrics. An attempt that resumes, or an exporter that restarts, therefore asks for the
last step of each metric and skips what the server has.
"""

import json
import re
from typing import Any, ClassVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from workers.tracking.protocol import (
    AttemptEnd,
    MetricPoint,
    MlflowTarget,
    TrackingJob,
    flatten,
    result_metrics,
)

# The server's limits for one request.
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_NAME_CHARACTERS = 250
MAX_VALUE_CHARACTERS = 6000
# MLflow has no status for a run that is paused; KILLED is its status for one that a person has stopped.
STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "paused": "KILLED"}


class MlflowTrackingClient:
    """A client that sends one attempt to MLflow."""

    is_buffered: ClassVar[bool] = False

    def __init__(self, target: MlflowTarget, job: TrackingJob) -> None:
        self._target = target
        self._job = job
        self._client = MlflowClient(target.uri)
        self._run_id = ""
        self._sent_steps: dict[str, int] = {}

    def start(self) -> tuple[str, str]:
        experiment_id = self._get_or_create_experiment()
        run = self._get_or_create_run(experiment_id)
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        self._log_config(run)
        self._sent_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        url = f"{self._target.url}/#/experiments/{experiment_id}/runs/{self._run_id}"
        return self._run_id, url

    def log(self, points: list[MetricPoint]) -> None:
        metrics = [
            Metric(_key(name), value, int(point.time.timestamp() * 1000), point.step)
            for point in points
            for name, value in point.values.items()
            if point.step > self._sent_steps.get(_key(name), -1)
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + MAX_METRICS])

    def finish(self, end: AttemptEnd) -> None:
        self.log([MetricPoint(end.step, end.time, result_metrics(end))])
        if end.error is not None:
            self._client.set_tag(self._run_id, "error", _text(end.error))
        if end.status in STATUS:
            self._client.set_terminated(self._run_id, STATUS[end.status])

    def _get_or_create_experiment(self) -> str:
        name = self._target.experiment
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(name))

    def _get_or_create_run(self, experiment_id: str) -> Run:
        run_id = self._job.tags["run_id"]
        query = f"tags.`tunesmith.run_id` = '{run_id}'"
        if runs := self._client.search_runs([experiment_id], query, max_results=1):
            return runs[0]
        tags = {"tunesmith.run_id": run_id}
        return self._client.create_run(experiment_id, tags=tags, run_name=self._job.name)

    def _log_config(self, run: Run) -> None:
        """Log the config as parameters, which are immutable: later changes become tags `changed.…`."""
        config = {_key(name): _text(value) for name, value in flatten(self._job.config).items()}
        known = run.data.params
        params = [Param(name, value) for name, value in config.items() if name not in known]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])
        changed = {name: value for name, value in config.items() if known.get(name, value) != value}
        tags = {
            **{f"tunesmith.{name}": value for name, value in self._job.tags.items()},
            **{f"label.{name}": value for name, value in self._job.labels.items()},
            **{f"changed.{name}": value for name, value in changed.items()},
        }
        self._client.log_batch(self._run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _key(name: str) -> str:
    """Replace the characters that the server refuses in a name."""
    return re.sub(r"[^\w/. -]", "_", name)[:MAX_NAME_CHARACTERS]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:MAX_VALUE_CHARACTERS]
