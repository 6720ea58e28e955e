"""Config of the `fetch` stage: the files of a fine-tuned model at OpenAI, as datasets."""

from typing import Annotated, Literal

from pydantic import Field

from trainers.configs.base import DatasetPart, DatasetRef, NonEmpty, Seed, StageConfig

# What a worker announces that has a key of OpenAI.
OPENAI = "openai"
MAX_RECORDED_ROWS = 50_000
RescueId = Annotated[str, Field(pattern="^rescue_[0-9a-z]{26}$")]
RequestsPerMinute = Annotated[
    int,
    Field(ge=1, le=100_000, description="Maximum rate of requests to OpenAI; OpenAI's own limits also hold."),
]


class FetchConfig(StageConfig):
    """Download the files of a fine-tuned model, and hold out the rows to compare models by.

    `POST /api/v1/rescues` creates the job. The program reads the key from `OPENAI_API_KEY`.
    """

    stage: Literal["fetch"] = Field("fetch", description="Kind of the stage.")
    rescue: RescueId | None = Field(
        None, description="Id of the rescue, which `POST /api/v1/rescues` creates together with its job."
    )
    fine_tuned_model: NonEmpty = Field(description="Name of the model at OpenAI, `ft:…`.")
    dataset: DatasetRef | None = Field(
        None,
        description="Training rows to use instead of the file at OpenAI, such as one that is deleted there.",
    )
    validation_dataset: DatasetRef | None = Field(
        None, description="Validation rows to use instead of the file at OpenAI."
    )
    prompts: DatasetRef | None = Field(
        None, description="Further prompts to record, such as requests of production; answers are optional."
    )
    held_out_rows: int = Field(
        100,
        ge=1,
        le=MAX_RECORDED_ROWS,
        description="Rows of the training file that are held out of training, at most a fifth of its rows.",
    )
    seed: Seed = 42
    requests_per_minute: RequestsPerMinute = 60

    @property
    def parts(self) -> list[DatasetPart]:
        """Rows for training and validation, and the rows to record."""
        return list(DatasetPart)

    @property
    def device_count(self) -> int:
        """None: the program sends requests."""
        return 0

    @property
    def capability(self) -> str:
        """A key of OpenAI."""
        return OPENAI
