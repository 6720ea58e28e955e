"""What every stage's config has in common: strict parsing, references, hardware queues."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

StageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
# Step and token counts meet 32-bit columns and counters on their way; no run comes near this.
MAX_COUNT = 10_000_000

# No control characters: a database may refuse NUL, and a terminal obeys escape sequences.
PRINTABLE_PATTERN = r"^[^\x00-\x1f\x7f]*$"
NonEmpty = Annotated[
    str, StringConstraints(min_length=1, max_length=1024, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]


class Queue(StrEnum):
    """The kind of hardware that a stage needs; each worker serves one or more of them."""

    cpu = "cpu"
    mlx = "mlx"
    cuda = "cuda"


class Config(BaseModel):
    """A config that refuses unknown fields, so that a misspelt option is an error and not a default."""

    # A config travels as JSON, which has no infinity.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageOutput(Config):
    """The output of an earlier stage of the same job, by that stage's name."""

    stage: StageName = Field(description="Name of an earlier stage of this job.")


class AdaptedModel(Config):
    """A base model with a PEFT adapter on it: what a model reference becomes on the worker."""

    base: NonEmpty = Field(description="Folder or hub id of the base model.")
    adapter: NonEmpty = Field(description="Folder of the PEFT adapter.")


ModelRef = Annotated[
    NonEmpty | StageOutput | AdaptedModel,
    Field(
        description=(
            "A model: a hub id (`Qwen/Qwen2.5-0.5B-Instruct`), a folder under an allowed root, "
            "an id of the registry (`model_…`), or `{stage: <name>}` for an earlier stage's output."
        )
    ),
]


class DatasetPart(StrEnum):
    """The parts of a dataset, by what they are for."""

    train = "train"
    validation = "validation"
    test = "test"


class StageDataset(Config):
    """A dataset that an earlier `prepare` stage of the same job makes, by that stage's name."""

    stage: StageName = Field(description="Name of an earlier `prepare` stage of this job.")
    part: DatasetPart = DatasetPart.train


DatasetRef = Annotated[
    NonEmpty | StageDataset,
    Field(
        description=(
            "A dataset: its id (`dataset_…`), its name, or `{stage: <name>, part: train}` for what an "
            "earlier stage makes; by hand, the path of a JSONL file."
        )
    ),
]


class StageConfig(Config):
    """Fields that every stage has."""

    stage: str = Field(description="Kind of the stage.")
    name: StageName | None = Field(
        None, description="How later stages refer to this one. Defaults to the kind of stage."
    )
    queue: Queue | None = Field(
        None, description="Hardware to run on. Defaults to the job's queue, then to the service's default."
    )
