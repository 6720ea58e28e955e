"""A promotion as views show it: its steps with what was measured in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from app.tables import PromotionStatus, RunStatus


class PromotionStepState(StrEnum):
    """Whether a step of a promotion has passed, is served now, was stopped, or has not begun."""

    passed = "passed"
    current = "current"
    stopped = "stopped"
    planned = "planned"


@dataclass(frozen=True)
class PromotionStepView:
    """A step of a promotion: its share, what it needs, and what was measured in it until now."""

    share: float
    state: PromotionStepState
    min_seconds: float
    min_requests: int
    started_at: datetime | None = None
    """When the current step began."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Values of `describe_measurement`; a step that has ended has `seconds` as well."""
    conditions: Sequence[Mapping[str, Any]] = ()
    """The assessments of the conditions."""


@dataclass(frozen=True)
class PromotionView:
    """A run that moves an alias to a deployment by steps."""

    run_id: str
    job_id: str
    alias: str
    deployment: str
    deployment_id: str | None
    status: RunStatus
    outcome: PromotionStatus | None
    """None before the first step of its last attempt."""
    steps: Sequence[PromotionStepView]
    error: Mapping[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def is_active(self) -> bool:
        """Whether it moves the alias now."""
        return self.outcome is PromotionStatus.active

    @property
    def current(self) -> PromotionStepView | None:
        """The step that is served now."""
        return next((step for step in self.steps if step.state is PromotionStepState.current), None)
