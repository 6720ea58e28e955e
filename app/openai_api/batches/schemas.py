"""The shapes of OpenAI's Batch API."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.batches.service import BatchRequest
from app.openai_api.files.schemas import ExpiresAfter
from app.openai_api.parameters import Metadata, OpenAIBody
from app.tables import Batch, BatchStatus
from trainers.configs import BatchEndpoint

BatchId = Annotated[str, Field(max_length=64, description="Id of a batch, `batch_…`.")]


class BatchCreate(OpenAIBody):
    """A batch to create."""

    input_file_id: str = Field(
        max_length=64,
        description="Id of a file with the purpose `batch`: a JSON object a line with `custom_id`, `method` "
        "(`POST`), `url` (the endpoint) and `body`; at most 50,000 lines and 200 MB.",
    )
    endpoint: BatchEndpoint = Field(strict=False, description="Path to which all requests are sent.")
    completion_window: Literal["24h"] = Field(description="Time after which the batch expires.")
    metadata: Metadata | None = Field(None, description="At most 16 pairs of strings, kept with the batch.")
    output_expires_after: ExpiresAfter | None = Field(
        None, description="When the files of responses and errors are deleted; null keeps them."
    )

    def to_request(self) -> BatchRequest:
        """Return the request in the terms of the service."""
        expiry = self.output_expires_after
        return BatchRequest(
            input_file_id=self.input_file_id,
            endpoint=self.endpoint,
            completion_window=self.completion_window,
            metadata=self.metadata,
            output_expires_seconds=expiry.seconds if expiry is not None else None,
        )


class BatchErrorObject(BaseModel):
    """A fault of the input file."""

    code: str | None = Field(description="Kind of the fault, such as `duplicate_custom_id`.")
    line: int | None = Field(description="Line of the file, from 1.")
    message: str = Field(description="What is wrong.")
    param: str | None = Field(description="The field of the line.")


class BatchErrors(BaseModel):
    """The faults of an input file."""

    object: Literal["list"] = Field(description="Always `list`.")
    data: list[BatchErrorObject] = Field(description="The first faults, at most 100.")


class RequestCounts(BaseModel):
    """The requests of a batch."""

    total: int = Field(description="Requests of the file; 0 until it is validated.")
    completed: int = Field(description="Requests with a successful response.")
    failed: int = Field(description="Requests with an error.")


class InputTokensDetails(BaseModel):
    """Input tokens by kind."""

    cached_tokens: int = Field(description="Tokens that an engine had cached.")


class OutputTokensDetails(BaseModel):
    """Output tokens by kind."""

    reasoning_tokens: int = Field(description="Tokens of reasoning.")


class BatchUsage(BaseModel):
    """The tokens of all successful responses."""

    input_tokens: int = Field(description="Tokens of the prompts.")
    input_tokens_details: InputTokensDetails
    output_tokens: int = Field(description="Tokens of the completions.")
    output_tokens_details: OutputTokensDetails
    total_tokens: int = Field(description="Both together.")


class BatchObject(BaseModel):
    """A batch."""

    id: BatchId
    object: Literal["batch"] = Field(description="Always `batch`.")
    endpoint: BatchEndpoint = Field(description="Path to which all requests are sent.")
    model: str | None = Field(description="Model of the first request; the file may name several.")
    errors: BatchErrors | None = Field(description="Why the batch has failed.")
    input_file_id: str = Field(description="The file of requests.")
    completion_window: str = Field(description="Time after which the batch expires.")
    status: BatchStatus = Field(description="State of the batch.")
    output_file_id: str | None = Field(description="The file of responses; null if there are none.")
    error_file_id: str | None = Field(description="The file of failed requests; null if there are none.")
    created_at: int = Field(description="Unix time of the creation.")
    in_progress_at: int | None = Field(description="Unix time at which the file was valid.")
    expires_at: int | None = Field(description="Unix time of the expiry.")
    finalizing_at: int | None = Field(description="Unix time at which the files were being written.")
    completed_at: int | None = Field(description="Unix time of the completion.")
    failed_at: int | None = Field(description="Unix time of the failure.")
    expired_at: int | None = Field(description="Unix time at which the batch ended because it had expired.")
    cancelling_at: int | None = Field(description="Unix time of the request to cancel.")
    cancelled_at: int | None = Field(description="Unix time at which the batch was cancelled.")
    request_counts: RequestCounts = Field(description="Requests so far.")
    usage: BatchUsage | None = Field(description="Tokens so far; null before the first response.")
    metadata: Metadata | None = Field(description="Pairs of the client.")
    job: str | None = Field(
        description="Id of the job that carries the batch out, with its log; not in OpenAI's API."
    )


def view_batch(batch: Batch) -> BatchObject:
    """Return a batch in OpenAI's shape."""
    times = {
        f"{name}_at": _unix_time(getattr(batch, f"{name}_at"))
        for name in (
            "in_progress",
            "expires",
            "finalizing",
            "completed",
            "failed",
            "expired",
            "cancelling",
            "cancelled",
        )
    }
    return BatchObject(
        id=batch.id,
        object="batch",
        endpoint=batch.endpoint,
        model=batch.model,
        errors=_view_errors(batch.errors),
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at.timestamp()),
        request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
        usage=_view_usage(batch.usage),
        metadata=batch.client_metadata,
        job=batch.job_id,
        **times,
    )


def _unix_time(time: datetime | None) -> int | None:
    return int(time.timestamp()) if time is not None else None


def _view_errors(errors: list[dict[str, Any]] | None) -> BatchErrors | None:
    if not errors:
        return None
    return BatchErrors(object="list", data=[BatchErrorObject.model_validate(error) for error in errors])


def _view_usage(usage: dict[str, int] | None) -> BatchUsage | None:
    if usage is None:
        return None
    return BatchUsage(
        input_tokens=usage["input_tokens"],
        input_tokens_details=InputTokensDetails(cached_tokens=usage["cached_tokens"]),
        output_tokens=usage["output_tokens"],
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage["reasoning_tokens"]),
        total_tokens=usage["input_tokens"] + usage["output_tokens"],
    )
