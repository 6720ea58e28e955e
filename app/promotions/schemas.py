"""A promotion as the API and the pages show it: its steps with what was measured in each."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from app.tables import PromotionStatus, RunStatus


class PromotionStepState(StrEnum):
    """Whether a step of a promotion has passed, is served now, was stopped, or has not begun."""

    passed = "passed"
    current = "current"
    stopped = "stopped"
    planned = "planned"


class PromotionStepView(BaseModel):
    """A step of a promotion: its share, what it needs, and what was measured in it until now."""

    share: float = Field(description="Share of the alias's requests for the new deployment.")
    state: PromotionStepState = Field(description="Whether the step has passed, or is served now.")
    min_seconds: float = Field(description="Shortest time of the step.")
    min_requests: int = Field(description="Requests to the new deployment that the step needs.")
    started_at: datetime | None = Field(None, description="When the current step began; null for others.")
    measured: Mapping[str, Any] = Field(
        default_factory=dict,
        description="Measured values by name, such as `requests` and `error_rate`; a step that has ended "
        "has `seconds` as well.",
    )
    conditions: Sequence[Mapping[str, Any]] = Field(
        (),
        description="Each condition with its `state` (`holds`, `undecided`, `violated`), `value`, `bound`, "
        "`n`, `limits_95` and `message`.",
    )


class PromotionView(BaseModel):
    """A run that moves an alias to a deployment by steps."""

    run_id: str = Field(description="Id of the run.")
    job_id: str = Field(description="Id of its job; cancelling it aborts the promotion.")
    alias: str = Field(description="Name of the alias.")
    deployment: str = Field(description="Name of the new deployment.")
    deployment_id: str | None = Field(description="Id of the new deployment; null before the first step.")
    status: RunStatus = Field(description="Status of the run.")
    outcome: PromotionStatus | None = Field(
        description="What the promotion did to the alias; null before the first step of its last attempt."
    )
    steps: Sequence[PromotionStepView] = Field(description="The steps, in their order.")
    error: Mapping[str, Any] | None = Field(description="Why the run failed, as in the view of a run.")
    created_at: datetime = Field(description="Time at which its job was posted.")
    started_at: datetime | None = Field(description="Start of the run's last attempt.")
    finished_at: datetime | None = Field(description="End of the run.")

    @property
    def is_active(self) -> bool:
        """Whether it moves the alias now."""
        return self.outcome is PromotionStatus.active

    @property
    def current(self) -> PromotionStepView | None:
        """The step that is served now."""
        return next((step for step in self.steps if step.state is PromotionStepState.current), None)
