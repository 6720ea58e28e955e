"""What the program of a batch and its worker exchange in the run directory, and the files of the result.

The worker writes `.control.json` and the program follows it; the program writes `.state.json` and the worker
follows that. The program appends each response to the journal, and makes the files of the result from it.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from trainers.configs.stages.serving.batch import MAX_BATCH_LINES, BatchConfig

JOURNAL = BatchConfig.completions_file
CONTROL, STATE = ".control.json", ".state.json"
RESULT_FOLDER = "batch"
OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"
MAX_FAULTS = 100
MAX_MODELS = 100


class Availability(StrEnum):
    """Whether a model has an engine."""

    ready = "ready"
    waiting = "waiting"  # Its deployment is being started.
    missing = "missing"  # Nothing serves its name.


class EngineTarget(BaseModel):
    """An engine of a model, and the name of the model on it; `share` is its weight among the targets."""

    base_url: str
    model: str
    share: float = 1.0


class ModelTargets(BaseModel):
    """The engines of a model."""

    availability: Availability
    targets: list[EngineTarget] = Field(default_factory=list)
    reason: str = ""


class Control(BaseModel):
    """What the worker tells the program: the models that exist, and when the batch must end."""

    model_config = ConfigDict(extra="forbid")

    known_models: list[str] = Field(default_factory=list)
    models: dict[str, ModelTargets] = Field(default_factory=dict)
    cancelled: bool = False
    expires_at: float | None = None
    """Unix time from which no request is sent."""
    validated: bool = False
    """Whether an earlier attempt has found no fault in the input file."""


Count = Annotated[int, Field(ge=0, lt=2**62)]
LineCount = Annotated[int, Field(ge=0, le=MAX_BATCH_LINES)]
Text = Annotated[str, Field(max_length=2000)]


class LineFault(BaseModel):
    """A fault of the input file, in the form of OpenAI's batch errors."""

    code: Text
    line: int | None = Field(default=None, ge=1, lt=2**31)
    message: Text
    param: Text | None = None


class BatchTokens(BaseModel):
    """The tokens of all responses."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0


class BatchState(BaseModel):
    """The progress of the program, as it is in the journal."""

    total: LineCount = 0
    completed: LineCount = 0
    failed: LineCount = 0
    usage: BatchTokens = Field(default_factory=BatchTokens)
    models: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=MAX_MODELS)] = Field(
        default_factory=list, description="The models of the file, while requests to them are left."
    )
    first_model: Annotated[str, Field(max_length=1024)] | None = None
    faults: Annotated[list[LineFault], Field(max_length=MAX_FAULTS)] = Field(default_factory=list)
    validated: bool = False
    finalizing: bool = False


def write_replaced(path: Path, value: BaseModel) -> None:
    """Write a file that another process polls, so that it sees a whole one; it need not survive the host."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(value.model_dump_json(), encoding="utf-8")
    temporary.replace(path)
