"""Request and response schemas of replays and differences."""

from typing import Any

from pydantic import BaseModel, Field

from app.jobs.schemas import JobName, LabelKey, LabelValue
from trainers.configs import Config
from trainers.configs.base import StageName


class ReplayCreate(Config):
    """What a replay changes; everything else is as it was."""

    name: JobName | None = Field(None, description="Name of the new job. Defaults to the job's.")
    labels: dict[LabelKey, LabelValue] | None = Field(
        None, max_length=32, description="Labels of the new job. Default to the job's."
    )
    priority: int | None = Field(
        None, ge=-100, le=100, description="Priority of the new job. Defaults to the job's."
    )
    reuse: bool = Field(
        False, description="Take the output of equal stages instead of computing it again, as in a job spec."
    )
    changes: dict[StageName, dict[str, Any]] = Field(
        default_factory=dict,
        max_length=20,
        description="New values of fields by the name of the stage, as a JSON Merge Patch (RFC 7396): "
        "objects are merged, and null restores a field's default.",
    )


class FieldDifference(BaseModel):
    """A value that differs."""

    field: str = Field(description="Path of the value, with dots.")
    a: Any = Field(description="The value in job `a`; null if it has none.")
    b: Any = Field(description="The value in job `b`; null if it has none.")


class StageDifference(BaseModel):
    """What the runs of one stage differ in."""

    stage: str = Field(description="Name of the stage.")
    a: str | None = Field(description="Id of its run in job `a`; null if that job has no such stage.")
    b: str | None = Field(description="Id of its run in job `b`, likewise.")
    equal: bool = Field(
        description="Whether both had the same config, inputs, code and versions, so that a deterministic "
        "stage has the same output."
    )
    config: list[FieldDifference] = Field(description="Fields of the resolved config.")
    inputs: list[FieldDifference] = Field(
        description="Models and datasets, by hash; empty until both runs have started."
    )
    environment: list[FieldDifference] = Field(
        description="Hash of the programs' code, versions of packages, and hardware, likewise."
    )
    results: list[FieldDifference] = Field(description="Numbers of the results, such as metrics.")


class JobDifferenceView(BaseModel):
    """What two jobs differ in."""

    a: str = Field(description="Id of the first job.")
    b: str = Field(description="Id of the second job.")
    stages: list[StageDifference] = Field(description="Every stage of both jobs, in the order of job `a`.")
    omitted: int = Field(description="Differences beyond the first 2,000, which are not listed.")
