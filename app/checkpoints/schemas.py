"""Responses about checkpoints."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class CheckpointView(BaseModel):
    """A resumable state of a run."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the checkpoint, `checkpoint_…`.")
    attempt: int = Field(description="The attempt that saved it.")
    step: int = Field(description="The step after which it was saved.")
    sha256: str = Field(description="Hash of its manifest, which contains the hash of every file.")
    size_bytes: int = Field(description="Size of all its files.")
    resumable: bool = Field(
        description="Whether a run can resume from it: after a run has succeeded, only the weights are kept."
    )
    metrics: dict[str, float | None] = Field(
        default_factory=dict, description="Metrics that the program has logged at its step, by name."
    )
    model_id: str | None = Field(
        None,
        description="Id of the registry model with its weights: that of a run that has succeeded after this "
        "step, or of a checkpoint of a fine-tuning job. Only such a model can be deployed.",
    )
    created_at: datetime = Field(description="When it was published.")
