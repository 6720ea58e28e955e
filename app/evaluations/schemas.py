"""Responses of the endpoints of evaluations."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from app.tables import Evaluation
from trainers.evaluation.results import EvaluationResult, PairedDifference, Score


class RowChange(StrEnum):
    """How a row's value differs from that of the other evaluation."""

    won = "won"
    lost = "lost"
    tied = "tied"


class RowFilter(StrEnum):
    """The rows to list."""

    won = "won"
    lost = "lost"
    wrong = "wrong"


class ReportFormat(StrEnum):
    """The form of a report."""

    html = "html"
    markdown = "markdown"


class RowsFormat(StrEnum):
    """The form in which all rows are downloaded."""

    jsonl = "jsonl"
    parquet = "parquet"


class EvaluationSummaryView(BaseModel):
    """An evaluation in a list."""

    id: str = Field(description="Id of the evaluation, `evaluation_…`.")
    job_id: str = Field(description="Id of its job.")
    run_id: str = Field(description="Id of the run that produced it.")
    role: str = Field(description="Name of the model in the run, such as `model` or `baseline`.")
    model: str = Field(description="The model as a person reads it.")
    model_id: str | None = Field(description="Id of the model in the registry, if it is in it.")
    dataset_id: str | None = Field(description="Id of the dataset.")
    dataset_sha256: str | None = Field(description="Hash of the dataset's file.")
    rows_sha256: str = Field(
        description="Hash of the prompts and references: evaluations with the same value have the same rows."
    )
    metric: str = Field(description="Name of the main metric.")
    n: int = Field(description="Number of rows.")
    scores: list[Score] = Field(description="One for each metric, the main one first.")
    created_at: datetime = Field(description="When the run ended.")


class EvaluationView(EvaluationSummaryView):
    """An evaluation with everything on which its scores depend."""

    provenance: dict[str, Any] = Field(
        description="What the scores depend on: hashes of model, template, dataset and prompts; engine, "
        "versions, sampling, seeds, hardware."
    )
    differences: list[PairedDifference] = Field(
        description="The paired differences of the run that this model is part of."
    )
    warnings: list[str] = Field(description="What weakens the scores of the run.")
    details: dict[str, Any] = Field(description="Contamination, slices and power, of all models of the run.")
    siblings: list[str] = Field(description="Ids of the evaluations of the other models of the run.")
    size_bytes: int = Field(description="Size of the rows and reports, which all models of the run share.")


class OtherRowView(BaseModel):
    """A row as the other evaluation has it."""

    responses: list[str | None] = Field(
        description="A response for each sample; null if the engine rejected the request."
    )
    values: dict[str, float | None] = Field(
        description="The value of each metric; null if it does not apply."
    )
    details: dict[str, dict[str, Any]] = Field(
        description="What metrics report besides: of a grader `passed`, and its `label`, `reason`, `errors` "
        "and `sub_scores` if it has them."
    )


class EvaluationRowView(OtherRowView):
    """A row of an evaluation."""

    row: int = Field(description="Number of the row in the dataset, from 1.")
    prompt: list[dict[str, Any]] = Field(description="The messages that were sent.")
    reference: str = Field(description="The expected answer; empty for a row without one.")
    fields: dict[str, Any] = Field(description="The row's other fields.")
    other: OtherRowView | None = Field(
        description="The row in the other evaluation; null without one, or if it lacks the row."
    )
    change: RowChange | None = Field(
        description="Whether this model is better than the other one on the row; null if one has no value."
    )


class LeaderboardEntryView(BaseModel):
    """The best evaluation of a model."""

    rank: int = Field(description="Place, from 1; equal values share one.")
    evaluation_id: str = Field(description="Id of the evaluation.")
    model: str = Field(description="The model as a person reads it.")
    model_id: str | None = Field(description="Id of the model in the registry, if it is in it.")
    value: float = Field(description="Value of the metric.")
    interval_95: tuple[float, float] | None = Field(description="95 % confidence interval.")
    n: int = Field(description="Rows that the value is computed from.")
    created_at: datetime = Field(description="When it was evaluated.")


class RankingView(BaseModel):
    """Models whose scores can be ranked: they have the same rows and the same signature."""

    signature: str = Field(description="Library, version and options of the metric.")
    rows_sha256: str = Field(description="Hash of the prompts and references.")
    dataset_sha256: str | None = Field(description="Hash of the dataset's file.")
    higher_is_better: bool = Field(description="Whether a higher value is better.")
    entries: list[LeaderboardEntryView] = Field(description="The best evaluation of each model, best first.")


class LeaderboardView(BaseModel):
    """The models that were evaluated on a dataset, ranked by a metric."""

    dataset_id: str = Field(description="Id of the dataset.")
    metric: str = Field(description="Name of the metric.")
    rankings: list[RankingView] = Field(
        description="One for each signature and set of rows, the one with the most models first: scores of "
        "different ones are not ranked together."
    )


def evaluation_summary_view(evaluation: Evaluation) -> EvaluationSummaryView:
    """Build the view of an evaluation in a list."""
    return EvaluationSummaryView.model_validate(evaluation.model_dump(exclude={"provenance", "artifact"}))


def evaluation_view(
    evaluation: Evaluation, result: EvaluationResult | None, siblings: list[str]
) -> EvaluationView:
    """Build the view of an evaluation with the part of its run's result that concerns it."""
    differences = result.differences if result is not None else []
    return EvaluationView(
        **evaluation_summary_view(evaluation).model_dump(),
        provenance=evaluation.provenance,
        differences=[each for each in differences if evaluation.role in (each.role, each.other)],
        warnings=result.warnings if result is not None else [],
        details=result.details if result is not None else {},
        siblings=siblings,
        size_bytes=evaluation.size_bytes,
    )
