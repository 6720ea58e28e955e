"""Config of the `promote` stage: move an alias to a deployment by growing shares, under live conditions."""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainers.configs.base import (
    MAX_COUNT,
    MAX_SECONDS,
    Config,
    DatasetRef,
    ServedModel,
    StageConfig,
    StageName,
)

MAX_STEPS = 20
MAX_JUDGED_ROWS = 10_000

Rate = Annotated[float, Field(gt=0, lt=1)]
StepSeconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
StepRequests = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class FailureAction(StrEnum):
    """What happens to the alias when a condition does not hold."""

    roll_back = "roll_back"  # The alias gets the targets that it had before.
    keep = "keep"  # The alias keeps the share of the step, for a person to decide.


class UndecidedAction(StrEnum):
    """What happens when a step has lasted for its longest time and a condition is still undecided."""

    roll_back = "roll_back"
    keep = "keep"
    advance = "advance"  # The next step begins with a warning, unless a condition is violated.


class PromotionStep(Config):
    """A share of the alias's requests, and how long it is watched."""

    share: float = Field(gt=0, le=1, description="Share of the alias's requests for the new deployment.")
    min_seconds: StepSeconds | None = Field(
        None, description="Shortest time of this step; null is the stage's `min_seconds`."
    )
    min_requests: StepRequests | None = Field(
        None, description="Requests that this step needs; null is the stage's `min_requests`."
    )
    max_seconds: StepSeconds | None = Field(
        None, description="Longest time of this step; null is the stage's `max_seconds`."
    )


class JudgeCondition(Config):
    """A judge model compares the responses of the new deployment with those of the present one."""

    judge: ServedModel
    rubric: str = Field(
        min_length=1,
        max_length=8000,
        description="What makes a response good, in the language of the judge's prompt, English.",
    )
    dataset: DatasetRef
    max_rows: int = Field(
        100,
        ge=6,
        le=MAX_JUDGED_ROWS,
        description="The first rows of the dataset, whose prompts both deployments get. The judge never "
        "sees the prompts of clients.",
    )
    min_preference: Rate = Field(
        description="What the lower end of the 95 % interval of the mean preference must reach: a row counts "
        "1 if the judge prefers the new deployment, 0.5 for a tie, else 0. 0.5 asks for a better one."
    )
    max_new_tokens: int = Field(256, ge=1, le=MAX_COUNT, description="Maximum tokens of a response.")
    show_reference: bool = Field(False, description="Whether the judge sees the row's reference.")
    max_error_share: float = Field(
        0.05, ge=0, le=1, description="Share of the rows that may lack a judgement; above it the stage fails."
    )


class PromotionConditions(Config):
    """Conditions on the new deployment's responses to the alias's clients, in each step."""

    max_error_rate: Rate | None = Field(
        None,
        description="Largest share of failed requests: status 500 or above, 429 of the engine, a broken "
        "stream or no response. What a client does wrong (400 to 499) and what it cancels does not count.",
    )
    max_error_rate_increase: Rate | None = Field(
        None,
        description="Largest amount by which that share may exceed the share of the present deployments, as "
        "a difference: 0.01 is one percentage point.",
    )
    max_p95_seconds: float | None = Field(
        None, gt=0, le=600, description="Seconds within which 95 % of the responses must be complete."
    )
    max_p95_first_token_seconds: float | None = Field(
        None, gt=0, le=600, description="Seconds within which 95 % of the streams must have begun."
    )
    judge: JudgeCondition | None = Field(
        None, description="Comparison by a judge model, once, while the first step is served."
    )

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if all(value is None for _, value in self):
            raise ValueError("a promotion without any condition would only move the alias: set at least one")
        return self


class PromoteConfig(StageConfig):
    """Give a new deployment growing shares of an alias's requests, and roll back if a condition fails."""

    stage: Literal["promote"] = Field("promote", description="Kind of the stage.")
    alias: StageName = Field(description="Name of an existing alias, whose requests are moved.")
    deployment: StageName | None = Field(
        None,
        description="Name of the new deployment; null is that of the job's `deploy` stage before this one.",
    )
    steps: list[PromotionStep] = Field(
        min_length=1, max_length=MAX_STEPS, description="Shares in rising order, of which the last is 1."
    )
    conditions: PromotionConditions = Field(
        description="What must hold in every step, each with 95 % confidence."
    )
    min_seconds: StepSeconds = Field(60, description="Shortest time of a step.")
    min_requests: StepRequests = Field(
        100,
        description="Requests to the new deployment, other than rejected and cancelled ones, that a step "
        "needs before it ends. A condition may need more: it must hold with 95 % confidence.",
    )
    max_seconds: StepSeconds = Field(
        86_400,
        description="Longest time of a step. With conditions still undecided, `on_undecided` says what then.",
    )
    on_failure: FailureAction = Field(
        FailureAction.roll_back,
        description="What happens to the alias when a condition is violated; the run fails in any case.",
    )
    on_undecided: UndecidedAction = Field(
        UndecidedAction.roll_back,
        description="What happens after `max_seconds` with too few requests to decide: `roll_back` and "
        "`keep` fail the run, `advance` continues with a warning if no condition is violated.",
    )

    @field_validator("steps")
    @classmethod
    def _check_shares(cls, steps: list[PromotionStep]) -> list[PromotionStep]:
        shares = [step.share for step in steps]
        if any(after <= before for before, after in pairwise(shares)):
            raise ValueError(f"the shares of the steps must rise; they are {', '.join(map(str, shares))}")
        if shares[-1] != 1:
            raise ValueError(f"the last step must have the share 1, not {shares[-1]:g}")
        return steps

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        for position in range(len(self.steps)):
            step = self.resolve_step(position)
            assert step.min_seconds is not None and step.max_seconds is not None
            if step.min_seconds > step.max_seconds:
                raise ValueError(
                    f"step {position + 1} lasts at least {step.min_seconds:g} s and at most "
                    f"{step.max_seconds:g} s: raise max_seconds"
                )
        return self

    @model_validator(mode="after")
    def _check_no_limits(self) -> Self:
        if self.limits is not None:
            raise ValueError("limits have no effect on a promotion: set max_seconds of its steps")
        return self

    def resolve_step(self, position: int) -> PromotionStep:
        """Return a step with the stage's values in place of null ones."""
        step = self.steps[position]
        values = {
            name: getattr(self, name) if getattr(step, name) is None else getattr(step, name)
            for name in ("min_seconds", "min_requests", "max_seconds")
        }
        return step.model_copy(update=values)

    @property
    def device_count(self) -> int:
        """None: a promotion starts on a worker that is busy, too."""
        return 0
