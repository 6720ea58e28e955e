"""Config of the `gate` stage: continue the job only if an evaluation is good enough."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import Config, NonEmpty, StageConfig, StageName
from trainers.configs.stages.evaluations.compare import EvaluationFolder, StageEvaluation
from trainers.configs.stages.evaluations.early_stop import MAX_VALUE, Limit

EVALUATION_PREFIX = "evaluation_"


class GateBasis(StrEnum):
    """What a gate decides on."""

    value = "value"  # The measured value or difference, whatever chance has contributed.
    bound = "bound"  # The worse end of its 95 % interval.
    test = "test"  # The one-sided test at 5 % that the model is not worse than the other by the margin.
    sequential = "sequential"  # The decision of the evaluation's own `early_stop`.


class LatestEvaluation(Config):
    """The latest evaluation of a deployed model on the dataset of the gate's evaluation."""

    deployment: StageName = Field(description="Name of a deployment; it need not be ready.")


class GateConfig(StageConfig):
    """A condition on an evaluation, which is met or not; stages that need the gate run or are skipped."""

    stage: Literal["gate"] = Field("gate", description="Kind of the stage.")
    evaluation: StageName | EvaluationFolder = Field(
        description="Name of an earlier stage that evaluates, `evaluate` or `lm_eval`. For a program that is "
        "started by hand, a folder."
    )
    role: NonEmpty = Field("model", description="Name of the model in that evaluation.")
    metric: NonEmpty | None = Field(
        None,
        description="Name of a metric of that evaluation, of `lm_eval` with its task, such as "
        "`gsm8k/exact_match,strict-match`; null is its first one.",
    )
    against: Limit | NonEmpty | StageEvaluation | LatestEvaluation | EvaluationFolder = Field(
        description="What the model must not be worse than: a constant on the metric's scale; another model "
        "of the same evaluation by its name, such as `baseline`; a stored evaluation by its id "
        "(`evaluation_…`); `{stage: <name>}` for that of another stage; or "
        "`{deployment: <name>}` for the latest evaluation of the deployed model on the same dataset. Values "
        "are compared on the rows that both have."
    )
    on: GateBasis = Field(
        GateBasis.bound,
        description="`value` decides on the measured value or difference; `bound` on the worse end of its "
        "95 % interval; `test` on a one-sided paired test at 5 %, which needs another model, no constant; "
        "`sequential` on the decision of the evaluation's own `early_stop`, whose metric, `against` and "
        "`margin` the gate repeats.",
    )
    margin: float = Field(
        0.0,
        ge=-MAX_VALUE,
        le=MAX_VALUE,
        description="How much worse the model may be, on the metric's scale. 0 with `bound` or `test` means "
        "that it must be better; a negative margin, better by more than so much.",
    )

    @model_validator(mode="after")
    def _check_test(self) -> Self:
        if self.on is GateBasis.test and isinstance(self.against, float | int):
            raise ValueError("a test compares two models; against a constant, decide on: bound")
        return self

    @property
    def device_count(self) -> int:
        """None: a gate starts on a worker that is busy, too."""
        return 0
