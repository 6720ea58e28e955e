"""Evals, runs and output items in the shapes of OpenAI's API."""

from typing import Any

from app.evals.history import read_object
from app.evals.imports.schemas import UnusableCriterion
from app.evals.results import Counts, RunCounts, decide, metric_name
from app.evals.service import STATUSES
from app.openai_api.evals.schemas import (
    CriterionResult,
    EvalErrorObject,
    EvalObject,
    EvalOutputItem,
    EvalRunObject,
    ModelUsage,
    ResultCounts,
)
from app.tables import Eval, EvalRun, Evaluation, ImportedEvalItem, Run, RunStatus
from trainers.evaluation.row_index import ModelRow, StoredRow

ITEM_DIGITS = 8
# Of a config in a request; the API returns the whole schema in their place.
REQUEST_FIELDS = frozenset({"item_schema", "include_sample_schema"})
STORED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "item": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "model": {"type": "string"},
                "created_at": {"type": "integer"},
                "metadata": {"type": "object"},
                "input": {"type": "array", "items": {"type": "object"}},
                "tools": {"type": "array", "items": {"type": "object"}},
            },
        },
        "sample": {"type": "object"},
    },
    "required": ["item", "sample"],
}
ITEM_STATUSES: dict[bool | None, str] = {True: "pass", False: "fail", None: "error"}


def view_eval(definition: Eval, unusable: list[UnusableCriterion] | None = None) -> EvalObject:
    """Return an eval in OpenAI's shape."""
    return EvalObject(
        id=definition.id,
        object="eval",
        name=definition.name,
        created_at=int(definition.created_at.timestamp()),
        data_source_config=_view_config(definition.data_source_config),
        testing_criteria=definition.testing_criteria,
        metadata=definition.custom,
        updated_at=int(definition.updated_at.timestamp()),
        imported_id=definition.imported_id,
        unusable=unusable,
    )


def _view_config(config: dict[str, Any]) -> dict[str, Any]:
    if "schema" in config:
        # That of an import, as OpenAI had made it.
        return {name: value for name, value in config.items() if name not in REQUEST_FIELDS}
    if config.get("type") != "custom":
        return {**config, "schema": STORED_SCHEMA}
    properties = {"item": config["item_schema"]}
    if config.get("include_sample_schema"):
        properties["sample"] = {"type": "object"}
    schema = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"type": "custom", "schema": schema}


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
        imported_id=None,
    )


def view_imported_run(run: EvalRun) -> EvalRunObject:
    """Return a run that was imported, with its results as OpenAI found them."""
    results = run.imported_results or {}
    error = results.get("error") or {}
    return EvalRunObject(
        id=run.id,
        object="eval.run",
        eval_id=run.eval_id,
        name=run.name,
        status=run.imported_status,
        model=run.model,
        created_at=int(run.created_at.timestamp()),
        data_source=run.data_source,
        error=EvalErrorObject(code=error.get("code") or "", message=error.get("message") or ""),
        metadata=run.custom,
        per_model_usage=results.get("per_model_usage") or [],
        per_testing_criteria_results=results.get("per_testing_criteria_results") or [],
        report_url=results.get("report_url") or "",
        result_counts=results["result_counts"],
        job=None,
        evaluation=None,
        imported_id=run.imported_id,
    )


def view_imported_item(run: EvalRun, item: ImportedEvalItem) -> EvalOutputItem:
    """Return an output item that was imported, as it was exported but for its ids."""
    exported = read_object(item.object)
    return EvalOutputItem(
        id=make_item_id(run, item.position),
        object="eval.run.output_item",
        created_at=exported["created_at"],
        eval_id=run.eval_id,
        run_id=run.id,
        status=item.status,
        datasource_item=exported["datasource_item"],
        datasource_item_id=exported["datasource_item_id"],
        results=exported.get("results") or [],
        sample=exported.get("sample") or {},
        imported_id=item.imported_id,
    )


def read_item_position(run: EvalRun, item_id: str) -> int | None:
    """Return the number in the id of an item; None for an id that is not of this run."""
    prefix, _, number = item_id.rpartition("_")
    is_own = f"{prefix}_" == make_item_id(run, 0)[:-ITEM_DIGITS] and len(number) == ITEM_DIGITS
    return int(number) if is_own and number.isascii() and number.isdigit() else None


def make_item_id(run: EvalRun, row: int) -> str:
    """Return the id of the item of a row; ids sort by the number of the row."""
    return f"outputitem_{run.id.partition('_')[2]}_{row:0{ITEM_DIGITS}d}"


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
    generated = bool(run.model)
    response = model.responses[0] if model.responses else None
    error = {"code": "", "message": ""}
    if response is None:
        error = {"code": "response_missing", "message": "The engine rejected the request; see the run's log."}
    messages = [{"role": each["role"], "content": each.get("content") or ""} for each in stored.prompt]
    return {
        "input": messages if generated else [],
        "output": [
            {"role": "assistant", "content": response}
            | ({"tool_calls": model.tool_calls} if model.tool_calls else {})
        ],
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
