"""Config of the `record` stage: the responses of a model at OpenAI to the prompts of a dataset."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, DatasetPart, DatasetRef, NonEmpty, Seed, StageConfig
from trainers.configs.stages.migration.fetch import OPENAI, RequestsPerMinute, RescueId

MAX_PRICE = 1_000_000.0
# The field of a recorded row with the model's response, as in a file of predictions; the calls of tools
# and the status are in fields with that name before `_tool_calls` and `_status`.
RESPONSE = "prediction"


class RecordConfig(StageConfig):
    """Ask a model at OpenAI once for each row, and keep its responses next to the rows.

    `POST /api/v1/rescues/{id}/start` creates the job. The program reads the key from `OPENAI_API_KEY`.
    """

    # The journal, from which a later attempt continues.
    completions_file: ClassVar[str] = "responses.jsonl"

    stage: Literal["record"] = Field("record", description="Kind of the stage.")
    rescue: RescueId | None = Field(None, description="Id of the rescue that the job belongs to.")
    fine_tuned_model: NonEmpty = Field(description="Name of the model at OpenAI, `ft:…`.")
    dataset: DatasetRef
    max_completion_tokens: int = Field(1024, ge=1, le=MAX_COUNT, description="Maximum tokens of a response.")
    temperature: float = Field(
        0.0, ge=0, le=2, description="0 is greedy decoding, as far as OpenAI offers it."
    )
    seed: Seed = 42
    logprobs: bool = Field(
        True, description="Keep the log-probabilities of the tokens, where the model offers them."
    )
    concurrency: int = Field(4, ge=1, le=64, description="Maximum number of requests in progress.")
    requests_per_minute: RequestsPerMinute = 60
    input_price: float | None = Field(
        None, ge=0, le=MAX_PRICE, description="US dollars for a million tokens of prompts; null if unknown."
    )
    output_price: float | None = Field(
        None, ge=0, le=MAX_PRICE, description="US dollars for a million tokens of responses; null if unknown."
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        le=MAX_PRICE,
        description="US dollars that the responses may cost; the program stops before a request that could "
        "exceed them.",
    )

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if self.max_cost is not None and (self.input_price is None or self.output_price is None):
            raise ValueError("max_cost needs input_price and output_price")
        return self

    @property
    def parts(self) -> list[DatasetPart]:
        """The rows with a reference, and all prompts with the recorded response as their reference."""
        return [DatasetPart.validation, DatasetPart.test]

    @property
    def device_count(self) -> int:
        """None: the program sends requests."""
        return 0

    @property
    def capability(self) -> str:
        """A key of OpenAI."""
        return OPENAI
