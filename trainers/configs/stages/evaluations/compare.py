"""Config of the `compare` stage: pair stored evaluations on the rows that they have in common."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import Config, NonEmpty, StageConfig, StageName

MAX_EVALUATIONS = 16
MAX_COMPARED_METRICS = 32


class StageEvaluation(Config):
    """An evaluation that an earlier stage of the same job produces."""

    stage: StageName = Field(description="Name of an earlier `evaluate` stage of this job.")
    role: NonEmpty = Field("model", description="Name of the model in that stage, such as `baseline`.")

    @property
    def label(self) -> str:
        """The name of the evaluation in the result."""
        return f"{self.stage}:{self.role}"


class EvaluationFolder(Config):
    """An evaluation as a folder on the worker that runs the stage."""

    folder: NonEmpty = Field(description="The folder `evaluation` of a run directory.")
    role: NonEmpty = Field("model", description="Name of the model in that evaluation.")
    id: NonEmpty | None = Field(None, description="Id of the evaluation; the worker sets it.")

    @property
    def label(self) -> str:
        """The name of the evaluation in the result."""
        return self.id or f"{self.folder}:{self.role}"


class CompareConfig(StageConfig):
    """Compare an evaluation with others, row by row; no model is needed."""

    stage: Literal["compare"] = Field("compare", description="Kind of the stage.")
    evaluations: list[NonEmpty | StageEvaluation | EvaluationFolder] = Field(
        min_length=2,
        max_length=MAX_EVALUATIONS,
        description="The evaluations, of which the first one is compared with each other one: ids "
        "(`evaluation_…`), or `{stage: <name>}` for those of an earlier `evaluate` stage. For a program that "
        "is started by hand, folders.",
    )
    metrics: list[NonEmpty] | None = Field(
        None,
        min_length=1,
        max_length=MAX_COMPARED_METRICS,
        description="Names of the metrics to compare; by default all that the evaluations have in common.",
    )

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        labels = self.evaluation_labels
        if len(set(labels)) < len(labels):
            raise ValueError("an evaluation is listed twice: name each once")
        return self

    @property
    def evaluation_labels(self) -> list[str]:
        """The name of each evaluation in the result: its id, if it has one."""
        return [each if isinstance(each, str) else each.label for each in self.evaluations]
