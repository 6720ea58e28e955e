"""Requests and responses of the endpoints of rescues."""

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator

from app.rescues.account import AccountModel
from app.runs.schemas import ErrorView
from trainers.configs import Queue
from trainers.configs.base import MAX_COUNT, PRINTABLE_PATTERN, Config
from trainers.configs.metrics import Metrics
from trainers.configs.stages.migration.fetch import MAX_RECORDED_ROWS, RequestsPerMinute
from trainers.configs.stages.migration.record import MAX_PRICE

MAX_MARGIN = 1e9

CREATE_EXAMPLES: dict[str, Any] = {
    "model": {
        "summary": "Fetch the files of a model",
        "value": {"fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:support:Abc123", "held_out_rows": 200},
    }
}
START_EXAMPLES: dict[str, Any] = {
    "base": {
        "summary": "Train an open base, and accept at most 5 points of exact match less",
        "value": {
            "base": "Qwen/Qwen2.5-7B-Instruct",
            "max_cost": 2.5,
            "metrics": ["exact_match"],
            "margin": 0.05,
        },
    }
}

OpenaiModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=500, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]
OwnDataset = Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE_PATTERN)]
Price = Annotated[float, Field(ge=0, le=MAX_PRICE)]


class RescueCreate(Config):
    """A model at OpenAI to rescue."""

    fine_tuned_model: OpenaiModelName = Field(description="Name of the model at OpenAI, `ft:…`.")
    dataset: OwnDataset | None = Field(
        None, description="Dataset with the training rows, if OpenAI has deleted the training file."
    )
    validation_dataset: OwnDataset | None = Field(
        None, description="Dataset with the validation rows, likewise."
    )
    prompts: OwnDataset | None = Field(
        None,
        description="Dataset with further prompts to record, such as requests of production, with or without "
        "answers.",
    )
    held_out_rows: int = Field(
        100,
        ge=1,
        le=MAX_RECORDED_ROWS,
        description="Rows of the training file that are held out of training, recorded and compared; at most "
        "a fifth of its rows.",
    )
    requests_per_minute: RequestsPerMinute = 60


class RescueStart(Config):
    """What a rescue may cost, and how the new model is trained and compared."""

    max_cost: float = Field(
        gt=0, le=MAX_PRICE, description="US dollars that the recorded responses may cost at OpenAI."
    )
    base: OpenaiModelName | None = Field(
        None,
        description="Model to train: a hub id, a folder, a registry id, or a name that is mapped to a base. "
        "By default the base at OpenAI, which must be mapped.",
    )
    metrics: Metrics | None = Field(
        None,
        description="Metrics, the main one first. By default the grader of a reinforcement job, `tool_calls` "
        "for rows with calls, `exact_match` for short references, and `chrf` for others.",
    )
    margin: float | None = Field(
        None,
        ge=0,
        le=MAX_MARGIN,
        description="How much worse the new model may be, on the scale of the main metric. By default a "
        "twentieth of the scale.",
    )
    max_completion_tokens: int = Field(
        1024, ge=1, le=MAX_COUNT, description="Maximum tokens of a response, of both models."
    )
    concurrency: int = Field(4, ge=1, le=64, description="Requests to OpenAI in progress at once.")
    requests_per_minute: RequestsPerMinute = 60
    input_price: Price | None = Field(
        None,
        description="US dollars for a million tokens of prompts; by default the known price of the base.",
    )
    output_price: Price | None = Field(None, description="US dollars for a million tokens of responses.")
    training: dict[str, Any] = Field(
        default_factory=dict,
        max_length=50,
        description="Further fields of the training stage, such as `max_length`.",
    )
    queue: Literal["cpu", "cuda"] | None = Field(None, description="Hardware of the new model.")

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("set both input_price and output_price, or neither")
        return self

    @property
    def training_queue(self) -> Queue | None:
        """The queue of the training stage."""
        return None if self.queue is None else Queue(self.queue)


class RescueStatus(StrEnum):
    """The state of a rescue."""

    fetching = "fetching"
    ready = "ready"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


class OpenaiModelView(BaseModel):
    """A fine-tuned model at OpenAI."""

    fine_tuned_model: str = Field(description="Name of the model.")
    base: str = Field(description="The base that it was trained from.")
    method: str = Field(description="`supervised`, `dpo` or `reinforcement`.")
    created_at: datetime = Field(description="When its job was created.")
    fine_tuning_job: str = Field(description="Id of its job at OpenAI.")
    training_file: str = Field(description="Id of its training file at OpenAI.")
    validation_file: str | None = Field(description="Id of its validation file at OpenAI.")
    hyperparameters: dict[str, Any] | None = Field(description="The hyperparameters that its job used.")
    trained_tokens: int | None = Field(description="Tokens of the training file times the epochs.")
    shutdown_date: date | None = Field(description="When OpenAI switches it off; null if unknown.")
    days_left: int | None = Field(description="Days until then; null if unknown.")


class OpenaiModelList(BaseModel):
    """The fine-tuned models at OpenAI."""

    items: list[OpenaiModelView] = Field(description="The models, newest first.")


class CostEstimateView(BaseModel):
    """What the recorded responses are expected to cost."""

    prompts: int = Field(description="Number of requests.")
    prompt_tokens: int = Field(description="Expected tokens of all prompts.")
    completion_tokens: int = Field(description="Expected tokens of all responses.")
    basis: str = Field(description="How the tokens were estimated.")
    input_price: float | None = Field(
        description="US dollars for a million tokens of prompts; null if unknown."
    )
    output_price: float | None = Field(description="Of responses, likewise.")
    price_source: str | None = Field(description="Where the prices come from.")
    cost: float | None = Field(description="Expected cost in US dollars; null if the prices are unknown.")


class RescueComparisonView(BaseModel):
    """The comparison of the new model with the recorded responses of the old one."""

    as_good: bool = Field(description="Whether the new model is as good within the margin, at 95 %.")
    metric: str = Field(description="Name of the metric.")
    n: int = Field(description="Rows that were compared.")
    value: float = Field(description="Value of the new model.")
    other_value: float | None = Field(description="Value of the old model's recorded responses.")
    difference: float | None = Field(description="Value of the new model minus that of the old one.")
    interval_95: tuple[float, float] | None = Field(description="95 % interval of the difference.")
    margin: float = Field(description="How much worse the new model may be.")
    message: str = Field(description="The decision as a sentence.")
    agreement: float | None = Field(
        description="Value of the new model with the old one's responses as the references, on all prompts."
    )


class RescueView(BaseModel):
    """A rescue."""

    id: str = Field(description="Id of the rescue, `rescue_…`.")
    status: RescueStatus = Field(
        description="`fetching` until the files are here, then `ready` to be started, then `running`. A "
        "rescue whose comparison was made has `succeeded`, whatever its outcome."
    )
    fine_tuned_model: str = Field(description="Name of the model at OpenAI.")
    source: dict[str, Any] | None = Field(description="Its fine-tuning job at OpenAI, once it was fetched.")
    rows: dict[str, int] | None = Field(description="Rows for training, held-out rows and further prompts.")
    fetched_files: dict[str, Any] | None = Field(
        description="The files at OpenAI with their hashes, or why one is missing."
    )
    estimate: CostEstimateView | None = Field(description="The expected cost of recording.")
    recorded: dict[str, Any] | None = Field(description="Counts, tokens and cost of the recorded responses.")
    fetch_job_id: str = Field(description="Id of the job that fetches the files.")
    job_id: str | None = Field(description="Id of the job that trains, records and compares.")
    fine_tuning_job_id: str | None = Field(description="Id of its fine-tuning job, `ftjob-…`.")
    new_model: str | None = Field(description="Name of the new model in requests, once it is trained.")
    files: dict[str, str] = Field(description="Ids of our files with the fetched and the split rows.")
    evaluation_id: str | None = Field(
        description="Id of the new model's evaluation: GET /api/v1/evaluations/{id}/rows?filter=lost lists "
        "the rows that got worse."
    )
    comparison: RescueComparisonView | None = Field(description="The outcome, once it is known.")
    error: ErrorView | None = Field(description="Why the rescue failed.")
    created_at: datetime = Field(description="When it was created.")


def openai_model_view(found: AccountModel) -> OpenaiModelView:
    """Build the view of a model at OpenAI."""
    model = found.model
    return OpenaiModelView(
        fine_tuned_model=model.fine_tuned_model,
        base=model.model,
        method=model.method_type,
        created_at=datetime.fromtimestamp(model.created_at).astimezone(),
        fine_tuning_job=model.id,
        training_file=model.training_file,
        validation_file=model.validation_file,
        hyperparameters=model.used_hyperparameters,
        trained_tokens=model.trained_tokens,
        shutdown_date=found.shutdown_date,
        days_left=found.days_left,
    )
