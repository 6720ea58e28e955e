"""Config of the `batch` stage: the requests of a file, each to the engine of its model."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainers.configs.base import NonEmpty, StageConfig
from trainers.configs.engines import RunningEngine

MAX_BATCH_LINES = 50_000
MAX_BATCH_BYTES = 200_000_000
MAX_CONCURRENCY = 1024


class BatchEndpoint(StrEnum):
    """The path to which all requests of a batch are sent."""

    chat_completions = "/v1/chat/completions"
    completions = "/v1/completions"
    responses = "/v1/responses"
    embeddings = "/v1/embeddings"


class BatchConfig(StageConfig):
    """Send the requests of a file to engines. `POST /v1/batches` creates the job of a batch."""

    # The journal, from which a later attempt continues.
    completions_file: ClassVar[str] = ".responses.jsonl"

    stage: Literal["batch"] = Field("batch", description="Kind of the stage.")
    batch: Annotated[str, Field(pattern="^batch_[0-9a-z]{26}$")] | None = Field(
        None, description="Id of the batch, which `POST /v1/batches` creates together with its job."
    )
    endpoint: BatchEndpoint = Field(
        BatchEndpoint.chat_completions, description="Path to which all requests are sent."
    )
    input: NonEmpty | None = Field(
        None, description="File of requests, for a program that is started by hand; the worker names it."
    )
    concurrency: int = Field(
        32,
        ge=1,
        le=MAX_CONCURRENCY,
        description="Maximum number of requests in progress for each model; a busy engine gets fewer.",
    )
    engines: dict[NonEmpty, RunningEngine] = Field(
        default_factory=dict,
        max_length=1000,
        description="For a program that is started by hand, the engine of each model by the model's name; a "
        "worker follows the deployments.",
    )

    @property
    def device_count(self) -> int:
        """None: the engines have the devices, and a batch starts on a worker that is busy, too."""
        return 0
