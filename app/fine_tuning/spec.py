"""A request for a fine-tuning job, checked as far as it can be without the database."""

from dataclasses import dataclass, field
from typing import Any

from app.fine_tuning.hyperparameters import FineTuningMethod
from trainers.configs import Queue


@dataclass(frozen=True)
class FineTuningSpec:
    """A fine-tuning job to create."""

    model: str
    training_file: str
    method: FineTuningMethod = FineTuningMethod.supervised
    validation_file: str | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    grader: dict[str, Any] | None = None
    suffix: str | None = None
    seed: int | None = None
    integrations: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    """Further fields of our training stage."""
    later_stages: list[dict[str, Any]] = field(default_factory=list)
    """Stages of the same job after the training."""
    queue: Queue | None = None
