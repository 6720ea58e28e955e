"""The shapes of OpenAI's Evals API."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.evals.data_source import DataSource
from app.evals.imports.schemas import UnusableCriterion
from app.evals.service import EvalStatus
from app.graders.service import parse_grader
from app.openai_api.parameters import Metadata, OpenAIBody
from app.settings import get_settings
from trainers.configs.base import PRINTABLE_PATTERN
from trainers.configs.parsing.json_schema import compile_schema

MAX_NAME = 200
MAX_CRITERIA = 20

EvalId = Annotated[str, Field(max_length=64, description="Id of an eval, `eval_…`.")]
EvalRunId = Annotated[str, Field(max_length=64, description="Id of a run, `evalrun_…`.")]
OutputItemId = Annotated[str, Field(max_length=96, description="Id of an output item, `outputitem_…`.")]


def _check_grader(criterion: dict[str, Any]) -> dict[str, Any]:
    try:
        parse_grader(criterion, get_settings())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {message}" if place else message) from None
    return criterion


def _check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    compile_schema(schema)
    return schema


TestingCriterion = Annotated[
    dict[str, Any],
    AfterValidator(_check_grader),
    Field(description="A grader, such as `{type: string_check, name, operation, input, reference}`."),
]


class CustomDataSource(OpenAIBody):
    """What the items of an eval look like."""

    type: Literal["custom"]
    item_schema: Annotated[dict[str, Any], AfterValidator(_check_schema)] = Field(
        description="JSON schema of an item; every item of a run must match it."
    )
    include_sample_schema: bool = Field(False, description="Whether the graders read `sample`.")


class StoredDataSource(OpenAIBody):
    """Items that are stored answers, such as chat completions with `store: true`."""

    type: Literal["logs", "stored_completions"]
    metadata: Metadata | None = Field(None, description="Pairs that the answers of every run have.")


class EvalCreate(OpenAIBody):
    """The definition of an evaluation."""

    name: str = Field("", max_length=MAX_NAME, pattern=PRINTABLE_PATTERN, description="Name of the eval.")
    data_source_config: Annotated[CustomDataSource | StoredDataSource, Field(discriminator="type")] = Field(
        description="What the items look like."
    )
    testing_criteria: list[TestingCriterion] = Field(
        min_length=1, max_length=MAX_CRITERIA, description="Graders; an item passes if it passes all."
    )
    metadata: Metadata | None = None


class EvalUpdate(OpenAIBody):
    """What may change of an eval."""

    name: str | None = Field(None, max_length=MAX_NAME, pattern=PRINTABLE_PATTERN, description="A new name.")
    metadata: Metadata | None = Field(None, description="New metadata, in place of all that it had.")


class EvalRunCreate(OpenAIBody):
    """A run of an eval."""

    name: str = Field("", max_length=MAX_NAME, pattern=PRINTABLE_PATTERN, description="Name of the run.")
    data_source: DataSource = Field(description="The items, and the model that responds to them.")
    metadata: Metadata | None = None


class EvalObject(BaseModel):
    """An eval."""

    id: EvalId
    object: Literal["eval"] = Field(description="Always `eval`.")
    name: str = Field(description="Name of the eval.")
    created_at: int = Field(description="Unix time of the creation.")
    data_source_config: dict[str, Any] = Field(description="Schema of the items, and of the samples.")
    testing_criteria: list[dict[str, Any]] = Field(description="Graders.")
    metadata: dict[str, str] = Field(description="The client's metadata.")
    updated_at: int = Field(description="Unix time of the last change; not in OpenAI's API.")
    imported_id: str | None = Field(
        description="Id at OpenAI of an eval that was imported; not in OpenAI's API."
    )
    unusable: list[UnusableCriterion] | None = Field(
        None,
        description="Of an imported eval on its own, the graders by which no new run can judge here; not in "
        "OpenAI's API.",
    )


class EvalDeleted(BaseModel):
    """The response to the deletion of an eval."""

    eval_id: EvalId
    object: Literal["eval.deleted"] = Field(description="Always `eval.deleted`.")
    deleted: bool = Field(description="Always true.")


class EvalRunDeleted(BaseModel):
    """The response to the deletion of a run."""

    run_id: EvalRunId
    object: Literal["eval.run.deleted"] = Field(description="Always `eval.run.deleted`.")
    deleted: bool = Field(description="Always true.")


class EvalErrorObject(BaseModel):
    """Why a run has failed; both are empty if it has not."""

    code: str = Field(description="Reason, for programs to branch on.")
    message: str = Field(description="What is wrong.")


class ResultCounts(BaseModel):
    """Numbers of items."""

    total: int = Field(description="All items.")
    passed: int = Field(description="Items that pass every criterion.")
    failed: int = Field(description="Items that fail one.")
    errored: int = Field(description="Items without a result, because a grader failed on them.")


class CriterionResult(BaseModel):
    """Numbers of items by one criterion."""

    testing_criteria: str = Field(description="Name of the criterion.")
    passed: int = Field(description="Items that pass it.")
    failed: int = Field(description="Items that fail it, or have no score.")


class ModelUsage(BaseModel):
    """Tokens of a model that graded."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str = Field(description="Name of the model.")
    invocation_count: int = Field(description="Items that it graded.")
    prompt_tokens: int = Field(description="Tokens of the prompts.")
    completion_tokens: int = Field(description="Tokens of the answers.")
    total_tokens: int = Field(description="All tokens.")
    cached_tokens: int = Field(description="Always 0: engines do not report them here.")


class EvalRunObject(BaseModel):
    """A run of an eval."""

    id: EvalRunId
    object: Literal["eval.run"] = Field(description="Always `eval.run`.")
    eval_id: EvalId
    name: str = Field(description="Name of the run.")
    status: EvalStatus = Field(description="State of the run.")
    model: str = Field(description="Model that responds; empty for responses that exist already.")
    created_at: int = Field(description="Unix time of the creation.")
    data_source: dict[str, Any] = Field(
        description="The items, and the model that responds to them. Of items in the request, the first 100 "
        "are shown, with the number of all as `content_total`."
    )
    error: EvalErrorObject
    metadata: dict[str, str] = Field(description="The client's metadata.")
    per_model_usage: list[ModelUsage] = Field(description="Tokens of the models that graded.")
    per_testing_criteria_results: list[CriterionResult] = Field(description="Numbers by criterion.")
    report_url: str = Field(description="Address of the report, once the run is completed.")
    result_counts: ResultCounts
    job: str | None = Field(description="Id of the job; null for an imported run. Not in OpenAI's API.")
    evaluation: str | None = Field(description="Id of the evaluation; not in OpenAI's API.")
    imported_id: str | None = Field(description="Id at OpenAI of an imported run; not in OpenAI's API.")


class EvalOutputItem(BaseModel):
    """An item of a run with its results."""

    id: OutputItemId
    object: Literal["eval.run.output_item"] = Field(description="Always `eval.run.output_item`.")
    created_at: int = Field(description="Unix time at which the run ended.")
    eval_id: EvalId
    run_id: EvalRunId
    status: str = Field(
        description="Whether it passes every criterion: `pass`, `fail` or `error`; of an imported item, as "
        "OpenAI says it."
    )
    datasource_item: dict[str, Any] = Field(description="The item.")
    datasource_item_id: int = Field(description="Number of the item, from 0.")
    results: list[dict[str, Any]] = Field(
        description="For each criterion its name, `passed` and `score`, and what the grader said."
    )
    sample: dict[str, Any] = Field(description="The prompt and the response.")
    imported_id: str | None = Field(None, description="Id at OpenAI of an imported item.")
