"""The objects of OpenAI's Evals API as its clients write them, with the fields that an import reads.

Other fields are kept as they are. Clients in Python name two fields differently from the API, unless they
dump by alias.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.evals.data_source import SourceRow
from trainers.configs.base import PRINTABLE_PATTERN

# The year 2242, in seconds: a larger number is a time in milliseconds.
MAX_TIME = 2**33
MAX_CRITERIA = 100
MAX_TOKENS = 2**53
PYTHON_NAMES = {"schema_": "schema", "run_model_name": "model_name"}


def _check_type(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("type"), str):
        raise ValueError("the field `type` must be a string")
    return value


ExportedSource = Annotated[dict[str, Any], AfterValidator(_check_type)]
Status = Annotated[str, Field(min_length=1, max_length=64, pattern=PRINTABLE_PATTERN)]
ExportedId = Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE_PATTERN)]
Time = Annotated[int, Field(ge=0, le=MAX_TIME)]
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
ClientMetadata = dict[Annotated[str, Field(max_length=1000)], Annotated[str, Field(max_length=10_000)]]


class Exported(BaseModel):
    """A part of an object, whose other fields are kept."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class ExportedEval(Exported):
    """An eval."""

    object: Literal["eval"]
    id: ExportedId
    name: str | None = Field(None, max_length=1000)
    created_at: Time
    data_source_config: ExportedSource
    testing_criteria: list[dict[str, Any]] = Field(max_length=MAX_CRITERIA)
    metadata: ClientMetadata | None = None


class ExportedCounts(Exported):
    """Numbers of items."""

    total: Count = 0
    passed: Count = 0
    failed: Count = 0
    errored: Count = 0


class ExportedCriterion(Exported):
    """Numbers of items by one criterion."""

    testing_criteria: str
    passed: Count = 0
    failed: Count = 0


class ExportedUsage(Exported):
    """Tokens of one model."""

    model_name: str
    invocation_count: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0
    cached_tokens: Count = 0


class ExportedError(Exported):
    """Why a run has failed."""

    code: str | None = None
    message: str | None = None


class ExportedResults(Exported):
    """What a run has found."""

    result_counts: ExportedCounts = Field(default_factory=ExportedCounts)
    per_testing_criteria_results: list[ExportedCriterion] | None = None
    per_model_usage: list[ExportedUsage] | None = None
    error: ExportedError | None = None
    report_url: str | None = None


class ExportedRun(ExportedResults):
    """A run of an eval."""

    object: Literal["eval.run"]
    id: ExportedId
    eval_id: ExportedId
    name: str | None = Field(None, max_length=1000)
    created_at: Time
    model: str | None = Field(None, max_length=1000)
    status: Status
    data_source: ExportedSource
    metadata: ClientMetadata | None = None


class ExportedItem(Exported):
    """An output item of a run."""

    object: Literal["eval.run.output_item"]
    id: ExportedId
    run_id: ExportedId
    created_at: Time
    status: Status
    datasource_item: dict[str, Any]
    datasource_item_id: Count
    results: list[dict[str, Any]] | None = None
    sample: dict[str, Any] | None = None


ExportedObject = ExportedEval | ExportedRun | ExportedItem
KINDS: dict[str, type[ExportedEval] | type[ExportedRun] | type[ExportedItem]] = {
    "eval": ExportedEval,
    "eval.run": ExportedRun,
    "eval.run.output_item": ExportedItem,
}
ROW = SourceRow


def use_api_names(value: Any) -> Any:
    """Return an object with the API's names of the fields that clients in Python rename."""
    if isinstance(value, dict):
        return {PYTHON_NAMES.get(name, name): use_api_names(one) for name, one in value.items()}
    return [use_api_names(one) for one in value] if isinstance(value, list) else value
