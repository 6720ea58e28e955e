"""What passes between a worker and its senders, as files: the order, what is told of it, and the ending.

A sender imports neither `app` nor a database: it is to start fast and to hold no credentials but its own.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field

ORDER = "order.json"
TOLD = "told.jsonl"
PROGRAM_ENDED = "program-ended"
ENDING = "ending.json"
LOG = "log.txt"


class MlflowTarget(BaseModel):
    """An MLflow server."""

    service: Literal["mlflow"] = "mlflow"
    uri: str
    url: str
    experiment: str


class WandbTarget(BaseModel):
    """A W&B project; `folder` takes what W&B keeps of runs on disk."""

    service: Literal["wandb"] = "wandb"
    project: str
    entity: str | None
    mode: Literal["online", "offline"]
    folder: Path


class TensorboardTarget(BaseModel):
    """A folder that TensorBoard reads."""

    service: Literal["tensorboard"] = "tensorboard"
    folder: Path


TrackingTarget = Annotated[MlflowTarget | WandbTarget | TensorboardTarget, Field(discriminator="service")]


class Tracked(BaseModel):
    """A run as an attempt at it begins."""

    run_id: str
    name: str
    stage: str
    job_id: str
    job_name: str
    labels: dict[str, str]
    worker: str
    attempt: int
    config: dict[str, Any]
    first_step: int = Field(description="The first step that this attempt may tell of.")
    sent_step: int = Field(description="The last step that earlier attempts have sent; -1 for none.")

    @property
    def tags(self) -> dict[str, str]:
        """What runs are found by."""
        return {
            "run_id": self.run_id,
            "stage": self.stage,
            "job_id": self.job_id,
            "job_name": self.job_name,
            "worker": self.worker,
            "attempt": str(self.attempt),
        }


class Order(BaseModel):
    """Which run to tell of, and where; `metrics` is the file to follow."""

    target: TrackingTarget
    tracked: Tracked
    metrics: Path


class Point(BaseModel):
    """Numbers of one step."""

    step: int
    time: datetime
    values: dict[str, float]


class Link(BaseModel):
    """Where a run stands in a service."""

    run_id: str
    url: Annotated[str, Field(pattern="^(https?|file)://")] | None


class Ending(BaseModel):
    """How the attempt ended; the run goes on later if it is `queued` or `paused`."""

    status: Literal["succeeded", "failed", "cancelled", "paused", "queued"]
    step: int
    error: dict[str, Any] | None
    result: dict[str, Any] | None


class Told(BaseModel):
    """A line of a sender; each field says one thing, if it is there."""

    link: Link | None = None
    step: int | None = Field(None, description="All points up to it have arrived.")
    trouble: str | None = Field(None, description="What keeps the service from taking them.")
    stuck: bool = Field(False, description="It does not take what is left after the program's end.")
    sent_all: bool = Field(False, description="All that the program has told has arrived.")


class Service(Protocol):
    """One tracking service. Each call may raise anything, and is then made again with the same arguments."""

    def start(self) -> Link:
        """Find the run or make it, and tell of its config."""

    def metrics(self, points: list[Point]) -> None:
        """Take points whose order is that of the program."""

    def finish(self, ending: Ending) -> None:
        """Take the result and the status."""


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, under dotted names; lists stay as they are."""
    if not isinstance(value, dict):
        return {prefix: value}
    items = ((f"{prefix}.{name}" if prefix else str(name), inner) for name, inner in value.items())
    return {name: leaf for path, inner in items for name, leaf in flat(inner, path).items()}


def numbers(result: dict[str, Any] | None) -> dict[str, float]:
    """The numbers of a result, each under its dotted name after `result.`; lists are left out."""
    leaves = flat(result or {}, "result").items()
    # A bool is an int to Python.
    return {name: float(leaf) for name, leaf in leaves if type(leaf) in (int, float)}
