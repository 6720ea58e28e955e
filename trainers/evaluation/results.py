"""The result of an evaluation, as programs write it and the API stores it."""

from typing import Any, Literal

from pydantic import BaseModel, Field

Interval = tuple[float, float]


class Score(BaseModel):
    """The value of one metric for one model."""

    metric: str = Field(description="Name of the metric in the evaluation.")
    value: float = Field(description="Value over all rows, on the metric's own scale.")
    interval_95: Interval | None = Field(description="95 % confidence interval; null if none is known.")
    n: int = Field(description="Rows that the value is computed from.")
    failed: int = Field(0, description="Rows without a response, which count as wrong.")
    higher_is_better: bool = Field(True, description="Whether a higher value is better.")
    signature: str = Field(description="Library, version and options on which the value depends.")
    details: dict[str, Any] = Field(default_factory=dict, description="Counts and further values.")


class ModelScores(BaseModel):
    """The scores of one model."""

    role: str = Field(description="Name of the model in the evaluation, such as `model` or `baseline`.")
    model: str = Field(description="The model as a person reads it.")
    scores: list[Score] = Field(min_length=1, description="One for each metric, the main one first.")
    provenance: dict[str, Any] = Field(
        default_factory=dict,
        description="What the scores depend on: hashes of model, template, dataset and prompts; engine, "
        "versions, sampling, seeds, hardware.",
    )


class PairedDifference(BaseModel):
    """The paired difference of two models on one metric: `role` minus `other`."""

    metric: str = Field(description="Name of the metric.")
    role: str = Field(description="The model whose difference it is.")
    other: str = Field(description="The model that it is compared with.")
    n: int = Field(description="Rows that both models have a value for.")
    excluded: int = Field(0, description="Rows without a value for one of the models, which do not count.")
    difference: float = Field(description="Value of `role` minus value of `other`, over these rows.")
    interval_95: Interval | None = Field(
        description="95 % confidence interval: it excludes 0 exactly if `p_value` is at most 0.05. Null if "
        "the rows are too few for one."
    )
    p_value: float = Field(description="Two-sided probability of such a difference between equal models.")
    p_adjusted: float = Field(description="Corrected for the number of comparisons in this evaluation.")
    method: str = Field(description="Name of the test and of the interval.")
    wins: int = Field(description="Rows on which `role` is better.")
    losses: int = Field(description="Rows on which `other` is better.")
    ties: int = Field(description="Rows on which both are equal.")
    detectable: float | None = Field(
        None,
        description="Smallest true difference that as many such rows would find with 80 %, with regard to "
        "the number of comparisons.",
    )
    verdict: Literal["better", "worse", "undecided"] = Field(
        description="`better` or `worse` if the corrected test decides at 5 %, with regard to the metric's "
        "direction."
    )


class EarlyStopResult(BaseModel):
    """The decision of an evaluation's `early_stop`, which its result contains as `details.early_stop`."""

    metric: str = Field(description="Name of the metric that decides.")
    against: float | str = Field(description="The constant or the model that `model` is compared with.")
    margin: float = Field(description="How much worse the model may be.")
    outcome: Literal["met", "worse", "out_of_reach", "undecided"] = Field(
        description="`met`: the model is worse by less than the margin; `worse`: by more; `out_of_reach`: "
        "the rows that were left could not have shown that it is within the margin; `undecided`: all rows "
        "are completed and neither is shown."
    )
    n: int = Field(description="Rows that were completed.")
    rows: int = Field(description="Rows of the dataset, or `max_rows`.")
    difference: float | None = Field(
        description="Mean of the model's values minus the other's, over the rows that have both."
    )
    evidence: float = Field(
        description="The largest evidence that the model is worse by less than the margin; 20 decides. Of "
        "other models, at most 5 % ever reach 20."
    )
    counter_evidence: float = Field(description="The same that it is worse by more.")
    p_value: float = Field(description="1 / evidence, at most 1: a p-value that is valid at any look.")

    @property
    def warnings(self) -> list[str]:
        """The warning of an evaluation that has stopped early."""
        if not self.has_stopped:
            return []
        return [
            f"The evaluation stopped after {self.n:,} of {self.rows:,} rows, as its early stop had decided: "
            f"{self.outcome}. Scores, p-values and verdicts assume a number of rows that no response has "
            "decided, so they are too certain; details.early_stop has the test that allows for it."
        ]

    @property
    def met(self) -> bool:
        """Whether the model is good enough."""
        return self.outcome == "met"

    @property
    def has_stopped(self) -> bool:
        """Whether rows were left out."""
        return self.n < self.rows


class EvaluationResult(BaseModel):
    """`result.json` of the stage `evaluate`, and of a comparison of stored evaluations."""

    stage: str = Field(description="Kind of the stage.")
    n: int = Field(description="Rows of the evaluation.")
    models: list[ModelScores] = Field(
        min_length=1, description="The models, the first one evaluated against the others."
    )
    differences: list[PairedDifference] = Field(
        default_factory=list, description="Of the first model to each other one, for each metric."
    )
    warnings: list[str] = Field(default_factory=list, description="What weakens the scores.")
    details: dict[str, Any] = Field(default_factory=dict, description="Contamination, slices, power.")
    metrics: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Configs of the metrics, by which the responses can be scored again.",
    )
    clusters: str | None = Field(
        None, description="Field whose equal values mark rows that are not independent; null if all are."
    )
    rows: str = Field("rows.jsonl", description="File with a line for each row, in the run directory.")

    @property
    def early_stop(self) -> EarlyStopResult | None:
        """The decision of the evaluation's `early_stop`, if it has one."""
        found = self.details.get("early_stop")
        return None if found is None else EarlyStopResult.model_validate(found)
