"""Evaluations and comparisons."""

from collections.abc import AsyncIterator
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from pydantic import Field

from app.client.api.files import Progress, download_file
from app.client.api.modes import Iteration, Mode, Operation
from app.client.notebook import draw_differences, draw_scores
from app.client.views.base import ApiView, RemoteObject


class ScoreRecord(ApiView):
    """The value of one metric for one model."""

    api_schema = "Score"

    metric: str
    value: float
    interval_95: tuple[float, float] | None = None
    n: int
    failed: int = 0
    higher_is_better: bool = True
    signature: str
    details: dict[str, Any] = Field({})


class DifferenceRecord(ApiView):
    """The paired difference of two models on one metric: `role` minus `other`."""

    api_schema = "PairedDifference"

    metric: str
    role: str
    other: str
    n: int
    excluded: int = 0
    difference: float
    interval_95: tuple[float, float] | None = None
    p_value: float
    p_adjusted: float
    method: str
    wins: int
    losses: int
    ties: int
    detectable: float | None = None
    verdict: str


class ScoredModel(ApiView):
    """The scores of one model."""

    api_schema = "ModelScores"

    role: str
    model: str
    scores: list[ScoreRecord]
    provenance: dict[str, Any] = Field({})


class ResultRecord(ApiView):
    """The result of an evaluation or a comparison."""

    api_schema = "EvaluationResult"

    stage: str
    n: int
    models: list[ScoredModel]
    differences: list[DifferenceRecord] = Field([])
    warnings: list[str] = Field([])
    details: dict[str, Any] = Field({})
    metrics: list[dict[str, Any]] = Field([])
    clusters: str | None = None
    rows: str = "rows.jsonl"

    def _repr_html_(self) -> str:
        return draw_scores(self.models, self.n) + draw_differences(self.differences)


class RemoteRow(ApiView):
    """A row of an evaluation."""

    api_schema = "EvaluationRowView"

    row: int
    prompt: list[dict[str, Any]]
    reference: str
    fields: dict[str, Any]
    responses: list[str | None]
    values: dict[str, float | None]
    details: dict[str, dict[str, Any]]
    other: dict[str, Any] | None = None
    change: str | None = None


class RemoteEvaluation(RemoteObject[Mode]):
    """The scores of one model on one dataset. One of a list has the first fields only."""

    api_schema = "EvaluationView"

    id: str
    job_id: str
    run_id: str
    role: str
    model: str
    model_id: str | None = None
    dataset_id: str | None = None
    dataset_sha256: str | None = None
    rows_sha256: str
    metric: str
    n: int
    scores: list[ScoreRecord]
    created_at: datetime
    provenance: dict[str, Any] = Field({})
    differences: list[DifferenceRecord] = Field([])
    warnings: list[str] = Field([])
    details: dict[str, Any] = Field({})
    siblings: list[str] = Field([])
    size_bytes: int | None = None

    @Iteration
    async def rows(
        self, filter: str | None = None, against: str | None = None, metric: str | None = None
    ) -> AsyncIterator[RemoteRow]:
        """Yield the rows, those first whose value differs most from the other evaluation's.

        `filter` is `won`, `lost` or `wrong`; `against` is the id of the other evaluation.
        """
        query = {"filter": filter, "against": against, "metric": metric}
        async for row in self._connection.pages(f"/evaluations/{self.id}/rows", RemoteRow, **query):
            yield row

    @Operation
    async def report(self, to: str | Path, format: str = "html") -> Path:
        """Download the report as `html` or `markdown`; return its path."""
        path, query = f"/evaluations/{self.id}/report", {"format": format}
        return await download_file(self._connection, path, Path(to), query=query)

    @Operation
    async def download(
        self, to: str | Path, format: str = "parquet", progress: Progress | None = None
    ) -> Path:
        """Download all rows as `parquet` or `jsonl`; return the path."""
        path, query = f"/evaluations/{self.id}/download", {"format": format}
        return await download_file(self._connection, path, Path(to), query=query, progress=progress)

    def _repr_html_(self) -> str:
        model = ScoredModel(role=self.role, model=self.model, scores=self.scores)
        return draw_scores([model], self.n) + draw_differences(self.differences)


class RemoteComparison(RemoteObject[Mode]):
    """Two or more evaluations on the same rows. One of a list has no result."""

    api_schema = "ComparisonView"

    id: str
    job_id: str
    run_id: str
    evaluations: list[str]
    n: int
    created_at: datetime
    result: ResultRecord | None = None
    size_bytes: int | None = None

    @Operation
    async def report(self, to: str | Path, format: str = "html") -> Path:
        """Download the report as `html` or `markdown`; return its path."""
        path, query = f"/comparisons/{self.id}/report", {"format": format}
        return await download_file(self._connection, path, Path(to), query=query)

    def _repr_html_(self) -> str:
        if self.result is None:
            return f"<code>{escape(self.id)}</code>"
        return draw_scores(self.result.models, self.n) + draw_differences(self.result.differences)
