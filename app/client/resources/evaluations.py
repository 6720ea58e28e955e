"""Evaluations and comparisons: queueing, finding and listing them."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from app.client.api.connection import new_idempotency_key
from app.client.api.modes import Iteration, Mode, Operation
from app.client.resources.base import Collection, as_json
from app.client.views.evaluations import RemoteComparison, RemoteEvaluation
from app.client.views.jobs import RemoteJob


class Evaluations(Collection[Mode]):
    """The evaluations of the service."""

    @Operation
    async def create(
        self, /, model: Any, dataset: str, *, name: str | None = None, **fields: Any
    ) -> RemoteJob[Mode]:
        """Queue an evaluation of a model on a dataset; `fields` are others of the stage, as `baseline`."""
        stage = as_json({"stage": "evaluate", "model": model, "dataset": dataset, **fields})
        body = {"name": name or f"evaluate-{dataset}", "stages": [stage]}
        return await self._connection.post(
            "/jobs", RemoteJob[Mode], body, idempotency_key=new_idempotency_key()
        )

    @Operation
    async def get(self, evaluation_id: str) -> RemoteEvaluation[Mode]:
        """Return an evaluation; raises ObjectMissing."""
        return await self._connection.get(f"/evaluations/{evaluation_id}", RemoteEvaluation[Mode])

    @Iteration
    async def list(
        self,
        *,
        model: str | None = None,
        dataset: str | None = None,
        job: str | None = None,
        metric: str | None = None,
    ) -> AsyncIterator[RemoteEvaluation[Mode]]:
        """Yield evaluations, newest first."""
        query = {"model": model, "dataset": dataset, "job": job, "metric": metric}
        async for one in self._connection.pages("/evaluations", RemoteEvaluation[Mode], **query):
            yield one


class Comparisons(Collection[Mode]):
    """The comparisons of the service."""

    @Operation
    async def create(
        self, evaluations: Sequence[str], *, metrics: Sequence[str] | None = None, name: str | None = None
    ) -> RemoteJob[Mode]:
        """Queue a comparison of the first evaluation with each other one, row by row."""
        stage = {"stage": "compare", "evaluations": list(evaluations)}
        if metrics is not None:
            stage["metrics"] = list(metrics)
        body = {"name": name or "comparison", "priority": 100, "stages": [stage]}
        return await self._connection.post(
            "/jobs", RemoteJob[Mode], body, idempotency_key=new_idempotency_key()
        )

    @Operation
    async def get(self, comparison_id: str) -> RemoteComparison[Mode]:
        """Return a comparison with its result; raises ObjectMissing."""
        return await self._connection.get(f"/comparisons/{comparison_id}", RemoteComparison[Mode])

    @Iteration
    async def list(self, *, job: str | None = None) -> AsyncIterator[RemoteComparison[Mode]]:
        """Yield comparisons, newest first, without their results."""
        async for one in self._connection.pages("/comparisons", RemoteComparison[Mode], job=job):
            yield one
