"""Base classes, references and queues that the configs of all stages share."""

import re
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_wrap_validator_function

from trainers.configs.parsing.unknown_fields import suggest_fields

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
StageName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
# A deployment that a person has named, or a fine-tuned model.
DeploymentName = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9_-]{0,62}|ft:[A-Za-z0-9._:-]{1,400})$")
]
# Step and token counts pass through 32-bit columns and counters; no run comes near this.
MAX_COUNT = 10_000_000
MAX_SECONDS = 366 * 24 * 3600.0
MAX_BYTES = 1 << 60

# Without control characters, because a database may reject NUL and a terminal executes escape sequences; and
# without line separators, embeddings, overrides and isolates, which reorder the text beside them.
_UNPRINTABLE_RANGES = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
PRINTABLE_PATTERN = rf"^[^{_UNPRINTABLE_RANGES}]*$"
UNPRINTABLE = re.compile(f"[{_UNPRINTABLE_RANGES}]")
UNPRINTABLE_TEXT = (
    "control characters, line separators, or characters that reorder the text beside them (U+202A to U+202E, "
    "U+2066 to U+2069)"
)
NonEmpty = Annotated[
    str, StringConstraints(min_length=1, max_length=1024, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]


class Queue(StrEnum):
    """Kind of hardware that a stage needs; a worker serves one or more queues."""

    cpu = "cpu"
    mlx = "mlx"
    cuda = "cuda"


# Marks the validator that suggests fields.
SUGGESTS = {"suggests_fields": True}


def _make_strict(schema: Any) -> None:
    """Make the numbers and booleans of a schema strict."""
    # Not recursive: the schema of a job contains those of its stages, and theirs are nested deeply.
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if part.get("type") in ("int", "float", "bool"):
                part["strict"] = True
            left += part.values()
        elif isinstance(part, list | tuple):
            left += part


def _name_similar_fields(config: type[BaseModel], schema: Any) -> None:
    """Add suggestions to the errors of unknown fields, inside the schema of the model itself.

    A validator around the model would hide its name in the errors of a union.
    """
    while schema["type"] != "model":
        schema = schema["schema"]
    # Each use of a model gets its one schema, which must not grow with their number.
    if schema["schema"]["type"] == "function-wrap" and schema["schema"].get("metadata") == SUGGESTS:
        return

    def validate(values: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(values)
        except ValidationError as error:
            raise suggest_fields(config, error) from None

    schema["schema"] = no_info_wrap_validator_function(validate, schema["schema"], metadata=SUGGESTS)


class Config(BaseModel):
    """Base class of configs and of requests.

    Unknown fields are errors, so that a misspelt option never becomes a default. Numbers and booleans are not
    converted: `"5"`, `true` and `5.0` are not the integer 5.
    """

    # A config is passed on as JSON, which cannot represent infinity.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Make the numbers and booleans strict, and name the fields that an unknown one may mean.

        Pydantic's `strict` would also refuse enums as text.
        """
        schema = handler(source)
        _make_strict(schema)
        _name_similar_fields(cls, schema)
        return schema


class StageOutput(Config):
    """The model that an earlier stage of the same job produces."""

    stage: StageName = Field(description="Name of an earlier stage of this job.")


class AdaptedModel(Config):
    """A base model with a PEFT adapter, as folders on the worker that runs the stage."""

    base: NonEmpty = Field(description="Folder or hub id of the base model.")
    adapter: NonEmpty = Field(description="Folder of the PEFT adapter.")


ModelRef = Annotated[
    NonEmpty | StageOutput | AdaptedModel,
    Field(
        description=(
            "A model: a hub id (`Qwen/Qwen2.5-0.5B-Instruct`, or `org/name@commit` with a revision), a "
            "folder under an allowed root, an id of the registry (`model_…`), or `{stage: <name>}` for the "
            "output of an earlier stage."
        )
    ),
]


class CheckpointModel(Config):
    """A checkpoint of a training run of this service."""

    run: NonEmpty = Field(description="Id of the run (`run_…`).")
    step: int | None = Field(None, ge=0, le=MAX_COUNT, description="Its step; null is the newest.")

    def __str__(self) -> str:
        """Return the run and the step."""
        return f"{self.run} at step {'newest' if self.step is None else self.step}"


# Part of the names of environment variables, which have no hyphen.
EndpointName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class EndpointModel(Config):
    """A model behind an OpenAI-compatible endpoint of the operator's.

    A job gives neither address nor key: nobody can make a worker send requests to an address of their choice.
    """

    endpoint: EndpointName = Field(description="Name of the endpoint in `TUNESMITH_EVALUATION_ENDPOINTS`.")
    model: NonEmpty = Field(description="Name of the model in requests to the endpoint.")

    def __str__(self) -> str:
        """Return the model and its endpoint."""
        return f"{self.model} at {self.endpoint}"


class DeployedModel(Config):
    """A model that this service has deployed."""

    deployment: DeploymentName = Field(
        description="Name of a deployment that is ready when the stage starts, or of a fine-tuned model."
    )

    def __str__(self) -> str:
        """Return the deployment."""
        return f"deployment {self.deployment}"


class StoredResponses(Config):
    """Responses that exist already, in a field of each row of the dataset."""

    field: NonEmpty = Field(
        description="Field with the response: a text, a list of one for each sample, or null for none."
    )

    def __str__(self) -> str:
        """Return the field."""
        return f"responses in the field {self.field}"


# Models of which no weights are loaded for the stage.
WEIGHTLESS_MODELS = (EndpointModel, DeployedModel, StoredResponses)

ServedModel = Annotated[
    EndpointModel | DeployedModel,
    Field(
        description="A model that already generates: `{endpoint: NAME, model: …}` for an OpenAI-compatible "
        "endpoint that the operator has named in the settings, or `{deployment: NAME}`."
    ),
]


class DatasetPart(StrEnum):
    """Part of a dataset by its purpose."""

    train = "train"
    validation = "validation"
    test = "test"


class StageDataset(Config):
    """A dataset that an earlier `prepare` stage of the same job produces."""

    stage: StageName = Field(description="Name of an earlier `prepare` stage of this job.")
    part: DatasetPart = Field(DatasetPart.train, description="Part of that stage's output.")


DatasetRef = Annotated[
    NonEmpty | StageDataset,
    Field(
        description=(
            "A dataset: its id (`dataset_…`), its name, or `{stage: <name>, part: train}` for the output of "
            "an earlier `prepare` stage. For a program that is started by hand, the path of a JSONL file."
        )
    ),
]
MAX_DATASETS = 32
MAX_NEEDS = 64


class DatasetShare(Config):
    """One dataset of a mixture; without `weight` and `rows`, each of its rows is in an epoch once."""

    dataset: DatasetRef
    weight: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Rows relative to the other datasets with a weight: 3 and 1 take three rows of one for "
        "each row of the other, as many as there are without repeating a row.",
    )
    rows: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Rows in an epoch: fewer than the file has are a random sample, and more repeat all of "
        "its rows before any is repeated again.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_bare_name(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f'each dataset of a list is an object: write {{"dataset": "{value[:100]}"}}')
        return value

    @model_validator(mode="after")
    def _check_amount(self) -> Self:
        if self.weight is not None and self.rows is not None:
            raise ValueError("weight and rows exclude each other: rows is exact, weight is relative")
        return self


DatasetMixture = Annotated[
    list[DatasetShare],
    Field(
        min_length=1,
        max_length=MAX_DATASETS,
        description="Several datasets, whose rows are interleaved; each epoch has the same rows in a new "
        "order.",
    ),
]
TrainingData = Annotated[
    DatasetRef | DatasetMixture,
    Field(
        description=(
            "A dataset: its id (`dataset_…`), its name, or `{stage: <name>, part: train}` for the output of "
            "an earlier `prepare` stage; or a list of `{dataset, weight}` or `{dataset, rows}`, which "
            "are mixed. "
            "For a program that is started by hand, the path of a JSONL file."
        )
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="Seed of the random choices.")]


class GateOutcome(StrEnum):
    """Outcome of a gate."""

    met = "met"
    not_met = "not_met"


class StageLimits(Config):
    """Limits of one attempt at a stage. The worker enforces them; null sets none."""

    max_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_SECONDS,
        description="Seconds that the stage's program may run; then it is asked to save a checkpoint and "
        "stop. An attempt that resumes counts from 0.",
    )
    max_memory_bytes: int | None = Field(
        None,
        gt=0,
        le=MAX_BYTES,
        description="Resident memory of the host that all processes of the program may use together, without "
        "the pages of files. The memory of GPUs does not count.",
    )
    max_disk_bytes: int | None = Field(
        None, gt=0, le=MAX_BYTES, description="Disk space that the files of the run directory may occupy."
    )

    def overridden_by(self, other: "StageLimits | None") -> Self:
        """Return these limits with those that the other sets explicitly, null included."""
        return self.model_copy(update=other.model_dump(exclude_unset=True) if other is not None else {})

    def lowered_by(self, other: "StageLimits | None") -> Self:
        """Return the lower of both limits in each field."""
        lower = {}
        for name, limit in self:
            limits = [value for value in (limit, getattr(other, name, None)) if value is not None]
            lower[name] = min(limits, default=None)
        return self.model_copy(update=lower)


class StageConfig(Config):
    """Fields of every stage."""

    stage: str = Field(description="Kind of the stage.")
    name: StageName | None = Field(
        None, description="Name by which later stages refer to this one. Defaults to the kind of the stage."
    )
    needs: list[StageName] | None = Field(
        None,
        max_length=MAX_NEEDS,
        description="Names of the earlier stages after which this one starts: stages that do not need each "
        "other run side by side. Defaults to the stage before it; `[]` needs none.",
    )
    when: GateOutcome = Field(
        GateOutcome.met,
        description="Outcome of the gate in `needs` after which the stage runs. With `not_met`, `needs` must "
        "contain exactly one gate; the stage is skipped if that gate is met.",
    )
    queue: Queue | None = Field(
        None,
        description="Kind of hardware to run on. Defaults to the job's queue, then to the service's default, "
        "then to the best that a live worker has: `cuda` for training, `cpu` for a stage without a model.",
    )
    limits: StageLimits | None = Field(
        None, description="Limits that are lower than the service's (`TUNESMITH_STAGE_LIMITS`)."
    )

    @property
    def parts(self) -> list[DatasetPart]:
        """The parts for which the stage makes a dataset."""
        return []

    @property
    def device_count(self) -> int:
        """Devices that a worker reserves for the run, where its queue has separate devices."""
        return 1

    @property
    def node_count(self) -> int:
        """Hosts that execute the run together, each with as many devices."""
        return 1

    @property
    def capability(self) -> str | None:
        """What a worker must have, and announce, besides the packages of the stage."""
        return None

    def capability_on(self, queue: Queue) -> str | None:
        """Return what a worker of the queue must announce so that the stage is sent there."""
        return None

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """The queues that the stage can use, the best first: without a model, a CPU is enough."""
        return (Queue.cpu, Queue.mlx, Queue.cuda)
