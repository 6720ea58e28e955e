"""The shapes of OpenAI's Evals API."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.evals.data_source import DataSource
from app.evals.results import Counts, RunCounts, decide, metric_name
from app.graders.service import parse_grader
from app.openai_api.parameters import Metadata, OpenAIBody
from app.settings import get_settings
from app.tables import Eval, EvalRun, Evaluation, Run, RunStatus
from trainers.configs.base import PRINTABLE_PATTERN
from trainers.configs.parsing.json_schema import compile_schema
from trainers.evaluation.row_index import ModelRow, StoredRow

MAX_NAME = 200
MAX_CRITERIA = 20
STATUSES: dict[RunStatus, str] = {
    RunStatus.queued: "queued",
    RunStatus.running: "in_progress",
    RunStatus.pausing: "in_progress",
    RunStatus.paused: "queued",
    RunStatus.cancelling: "in_progress",
    RunStatus.succeeded: "completed",
    RunStatus.failed: "failed",
    RunStatus.cancelled: "canceled",
    RunStatus.skipped: "canceled",
}
ITEM_STATUSES: dict[bool | None, Literal["pass", "fail", "error"]] = {
    True: "pass",
    False: "fail",
    None: "error",
}
EvalStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]

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


class EvalCreate(OpenAIBody):
    """The definition of an evaluation."""

    name: str = Field("", max_length=MAX_NAME, description="Name of the eval.")
    data_source_config: CustomDataSource = Field(
        description="What the items look like. Logs and stored completions are not offered as sources."
    )
    testing_criteria: list[TestingCriterion] = Field(
        min_length=1, max_length=MAX_CRITERIA, description="Graders; an item passes if it passes all."
    )
    metadata: Metadata | None = None


class EvalUpdate(OpenAIBody):
    """What may change of an eval."""

    name: str | None = Field(None, max_length=MAX_NAME, description="A new name.")
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
    data_source: dict[str, Any] = Field(description="The items, and the model that responds to them.")
    error: EvalErrorObject
    metadata: dict[str, str] = Field(description="The client's metadata.")
    per_model_usage: list[ModelUsage] = Field(description="Tokens of the models that graded.")
    per_testing_criteria_results: list[CriterionResult] = Field(description="Numbers by criterion.")
    report_url: str = Field(description="Address of the report, once the run is completed.")
    result_counts: ResultCounts
    job: str = Field(description="Id of the job; not in OpenAI's API.")
    evaluation: str | None = Field(description="Id of the evaluation; not in OpenAI's API.")


class EvalOutputItem(BaseModel):
    """An item of a run with its results."""

    id: OutputItemId
    object: Literal["eval.run.output_item"] = Field(description="Always `eval.run.output_item`.")
    created_at: int = Field(description="Unix time at which the run ended.")
    eval_id: EvalId
    run_id: EvalRunId
    status: Literal["pass", "fail", "error"] = Field(description="Whether it passes every criterion.")
    datasource_item: dict[str, Any] = Field(description="The item.")
    datasource_item_id: int = Field(description="Number of the item, from 0.")
    results: list[dict[str, Any]] = Field(
        description="For each criterion its name, `passed` and `score`, and what the grader said."
    )
    sample: dict[str, Any] = Field(description="The prompt and the response.")


def view_eval(definition: Eval) -> EvalObject:
    """Return an eval in OpenAI's shape."""
    config = definition.data_source_config
    properties = {"item": config["item_schema"]}
    if config.get("include_sample_schema"):
        properties["sample"] = {"type": "object"}
    return EvalObject(
        id=definition.id,
        object="eval",
        name=definition.name,
        created_at=int(definition.created_at.timestamp()),
        data_source_config={
            "type": "custom",
            "schema": {"type": "object", "properties": properties, "required": sorted(properties)},
        },
        testing_criteria=definition.testing_criteria,
        metadata=definition.custom,
    )


def view_run(
    run: EvalRun, stage: Run, evaluation: Evaluation | None, counts: RunCounts | None, base_url: str
) -> EvalRunObject:
    """Return a run in OpenAI's shape; counts and evaluation are those of a run that is completed."""
    error = stage.error if stage.status is RunStatus.failed else None
    counts = counts or RunCounts(Counts(), tuple(Counts() for _ in run.testing_criteria))
    report = f"{base_url}api/v1/evaluations/{evaluation.id}/report" if evaluation is not None else ""
    return EvalRunObject(
        id=run.id,
        object="eval.run",
        eval_id=run.eval_id,
        name=run.name,
        status=STATUSES[stage.status],
        model=run.model,
        created_at=int(run.created_at.timestamp()),
        data_source=run.data_source,
        error=EvalErrorObject(code=(error or {}).get("code", ""), message=(error or {}).get("message", "")),
        metadata=run.custom,
        per_model_usage=_list_usage(evaluation),
        per_testing_criteria_results=[
            CriterionResult(testing_criteria=str(criterion["name"]), passed=each.passed, failed=each.failed)
            for criterion, each in zip(run.testing_criteria, counts.criteria, strict=True)
        ],
        report_url=report,
        result_counts=ResultCounts(
            total=counts.items.total,
            passed=counts.items.passed,
            failed=counts.items.failed,
            errored=counts.items.errored,
        ),
        job=run.job_id,
        evaluation=evaluation.id if evaluation is not None else None,
    )


def make_item_id(run: EvalRun, row: int) -> str:
    """Return the id of the item of a row; ids sort by the number of the row."""
    return f"outputitem_{run.id.partition('_')[2]}_{row:08d}"


def view_item(
    run: EvalRun, stage: Run, evaluation: Evaluation, judged: list[bool | None], stored: StoredRow
) -> EvalOutputItem:
    """Return an item in OpenAI's shape; `judged` is whether it passes each criterion."""
    model = stored.models.get("model", ModelRow([]))
    names = [metric_name(position) for position in range(len(judged))]
    return EvalOutputItem(
        id=make_item_id(run, stored.row),
        object="eval.run.output_item",
        created_at=int(evaluation.created_at.timestamp()),
        eval_id=run.eval_id,
        run_id=run.id,
        status=ITEM_STATUSES[decide(judged)],
        datasource_item=stored.fields["item"],
        datasource_item_id=stored.row - 1,
        results=[
            {
                "name": criterion["name"],
                "type": criterion["type"],
                "passed": bool(passed),
                "score": 0.0 if (score := model.values.get(name)) is None else score,
                "sample": {},
                **{key: value for key, value in model.details.get(name, {}).items() if key != "passed"},
            }
            for criterion, name, passed in zip(run.testing_criteria, names, judged, strict=True)
        ],
        sample=_view_sample(run, stage, stored, model),
    )


def _view_sample(run: EvalRun, stage: Run, stored: StoredRow, model: ModelRow) -> dict[str, Any]:
    generated = run.data_source["type"] != "jsonl"
    response = model.responses[0] if model.responses else None
    error = {"code": "", "message": ""}
    if response is None:
        error = {"code": "response_missing", "message": "The engine rejected the request; see the run's log."}
    messages = [{"role": each["role"], "content": each.get("content") or ""} for each in stored.prompt]
    return {
        "input": messages if generated else [],
        "output": [{"role": "assistant", "content": response}],
        "model": run.model,
        "error": error,
        "finish_reason": model.finish_reason or "stop",
        "max_completion_tokens": stage.config["max_new_tokens"],
        "temperature": stage.config["temperature"],
        "top_p": stage.config["top_p"],
        "seed": stage.config["seed"],
        "usage": {
            "prompt_tokens": model.prompt_tokens,
            "completion_tokens": model.completion_tokens,
            "total_tokens": model.prompt_tokens + model.completion_tokens,
            "cached_tokens": 0,
        },
    }


def _list_usage(evaluation: Evaluation | None) -> list[ModelUsage]:
    if evaluation is None:
        return []
    totals: dict[str, list[int]] = {}
    for score in evaluation.scores:
        for model, tokens in score["details"].get("usage", {}).items():
            total = totals.setdefault(model, [0, 0, 0])
            total[0] += score["n"]
            total[1] += tokens["prompt_tokens"]
            total[2] += tokens["completion_tokens"]
    return [
        ModelUsage(
            model_name=model,
            invocation_count=count,
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            cached_tokens=0,
        )
        for model, (count, prompt, completion) in totals.items()
    ]
