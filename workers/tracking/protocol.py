"""The spool: files through which workers and the exporter communicate.

One folder per attempt, `<run id>.<attempt>`, which appears complete by a rename:

    job.json         worker      the run, and the services that receive it
    earlier.jsonl    worker      metrics of earlier attempts that a service may lack
    events.jsonl     worker      a link to the events of the attempt; the file itself after its end
    end.json         worker      how the attempt ended
    <service>.json   exporter    what the service has received, at first from earlier attempts

A folder without `job.json` is void: the exporter stops sending that attempt.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from trainers.evaluation.results import EvaluationResult, Interval
from trainers.runtime import run_dir as files

JOB = "job.json"
EARLIER = "earlier.jsonl"
EVENTS = "events.jsonl"
END = "end.json"


class MlflowTarget(BaseModel):
    """An MLflow server."""

    service: Literal["mlflow"] = "mlflow"
    uri: str
    url: str
    experiment: str


class WandbTarget(BaseModel):
    """A W&B project; W&B keeps its local files in `folder`."""

    service: Literal["wandb"] = "wandb"
    project: str
    entity: str | None
    mode: Literal["online", "offline"]
    folder: Path
    name: str | None = None
    tags: list[str] = []


class TensorboardTarget(BaseModel):
    """A folder that TensorBoard reads."""

    service: Literal["tensorboard"] = "tensorboard"
    folder: Path


TrackingTarget = Annotated[MlflowTarget | WandbTarget | TensorboardTarget, Field(discriminator="service")]


class TrackingJob(BaseModel):
    """An attempt at a run, and the services that receive it."""

    attempt: int
    name: str = Field(description="The run's name in a service: its job and its stage.")
    tags: dict[str, str] = Field(description="The run's ids and names, by which it is found in a service.")
    labels: dict[str, str]
    config: dict[str, Any]
    first_step: int = Field(description="The first step that this attempt can execute.")
    targets: list[TrackingTarget]


class AttemptEnd(BaseModel):
    """The status with which an attempt ended; a `queued` or `paused` run continues with another attempt."""

    status: str
    step: int
    time: AwareDatetime
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None


class TrackingState(BaseModel):
    """The progress of sending a run to a service; an item of the run's column `tracking`."""

    service: str
    run_id: str | None = None
    url: str | None = None
    step: int | None = None
    complete: bool = False
    error: str | None = None


@dataclass(frozen=True)
class MetricPoint:
    """Named values of one step."""

    step: int
    time: datetime
    values: dict[str, float]


class TrackingClient(Protocol):
    """A client of a tracking service that sends one attempt.

    Each method may raise any exception; it is then called again with the same arguments.
    """

    is_buffered: ClassVar[bool]
    """Whether points can still be lost with this process after `log` has returned, until `finish`."""

    def start(self) -> tuple[str, str]:
        """Find or create the run, send its config, and return its id and URL."""

    def log(self, points: list[MetricPoint]) -> None:
        """Send points in the order in which the program wrote them."""

    def finish(self, end: AttemptEnd) -> None:
        """Send the result and the status."""


def list_attempts(spool: Path) -> list[Path]:
    """Return the folders of all attempts in the spool, void ones included; later attempts come last."""
    folders = [folder for folder in spool.glob("[!.]*") if folder.is_dir()]
    return sorted(folders, key=lambda folder: (folder.stem, int(folder.suffix[1:])))


def read_job(folder: Path) -> TrackingJob | None:
    """Return the job, or None if the folder is void."""
    job = files.read_json(folder / JOB)
    return None if job is None else TrackingJob.model_validate(job)


def read_state(folder: Path, service: str) -> TrackingState:
    """Return the state of a service."""
    return TrackingState.model_validate_json((folder / f"{service}.json").read_bytes())


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested objects as one with dotted names; lists remain values."""
    if not isinstance(value, dict):
        return {prefix: value}
    items = ((f"{prefix}.{name}" if prefix else str(name), inner) for name, inner in value.items())
    return {name: leaf for path, inner in items for name, leaf in flatten(inner, path).items()}


def result_metrics(end: AttemptEnd) -> dict[str, float]:
    """Return the numbers of a result by their dotted names, each with the prefix `result.`.

    Scores of an evaluation are named by model and metric: `result.model.bleu`, `result.model.bleu.low_95`.
    """
    leaves = flatten(end.result or {}, "result").items()
    # To Python a bool is an int.
    numbers = {name: float(leaf) for name, leaf in leaves if type(leaf) in (int, float)}
    try:
        evaluation = EvaluationResult.model_validate(end.result)
    except ValidationError:
        return numbers
    return numbers | _score_metrics(evaluation) | _difference_metrics(evaluation)


def _score_metrics(evaluation: EvaluationResult) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for model in evaluation.models:
        for score in model.scores:
            name = f"result.{model.role}.{score.metric}"
            numbers |= {name: score.value, f"{name}.n": score.n, f"{name}.failed": score.failed}
            numbers |= _interval_metrics(name, score.interval_95)
    return numbers


def _difference_metrics(evaluation: EvaluationResult) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for each in evaluation.differences:
        name = f"result.{each.role}.minus.{each.other}.{each.metric}"
        numbers |= {name: each.difference, f"{name}.n": each.n, f"{name}.p_adjusted": each.p_adjusted}
        numbers |= _interval_metrics(name, each.interval_95)
    return numbers


def _interval_metrics(name: str, interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}.low_95": interval[0], f"{name}.high_95": interval[1]}
