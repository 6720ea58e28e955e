"""Jobs: creating, planning, listing and comparing them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from app.client.api.connection import new_idempotency_key
from app.client.api.modes import Iteration, Mode, Operation
from app.client.resources.base import Collection, as_json
from app.client.views.jobs import JobChange, JobPlan, JobSummary, Preflight, RemoteJob, read_job
from app.client.views.runs import RemoteRun

Stages = Sequence[Any]
"""Configs of `trainers.configs`, or mappings."""


class Jobs(Collection[Mode]):
    """The jobs of the service."""

    @Operation
    async def create(
        self,
        /,
        spec: Mapping[str, Any] | None = None,
        *,
        stages: Stages | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> RemoteJob[Mode]:
        """Queue a job of a spec, or of its `stages` and other fields such as `name` and `labels`.

        A request whose response is lost is repeated with its idempotency key, and creates one job.
        """
        return await self._connection.post(
            "/jobs",
            RemoteJob[Mode],
            make_spec(spec, stages, fields),
            idempotency_key=idempotency_key or new_idempotency_key(),
        )

    @Operation
    async def plan(
        self, /, spec: Mapping[str, Any] | None = None, *, stages: Stages | None = None, **fields: Any
    ) -> JobPlan:
        """Return the plan for a job, with every default resolved, without queueing it."""
        body = make_spec(spec, stages, fields)
        return await self._connection.post("/jobs/dry-run", JobPlan, body, repeatable=True)

    @Operation
    async def preflight(
        self,
        /,
        spec: Mapping[str, Any] | None = None,
        *,
        stages: Stages | None = None,
        probe_steps: int = 0,
        price_per_hour: float | None = None,
        **fields: Any,
    ) -> Preflight[Mode]:
        """Queue short runs that check the data, settings and memory of a job's training stages."""
        body = make_spec(spec, stages, fields)
        return await self._connection.post(
            "/jobs/preflight",
            Preflight[Mode],
            body,
            query={"probe_steps": probe_steps, "price_per_hour": price_per_hour},
            idempotency_key=new_idempotency_key(),
        )

    @Operation
    async def get(self, job_id: str) -> RemoteJob[Mode]:
        """Return a job; raises ObjectMissing."""
        return await read_job(self._connection, job_id)

    @Iteration
    async def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
    ) -> AsyncIterator[JobSummary]:
        """Yield all jobs, newest first, read in pages of `limit`."""
        query: dict[str, Any] = {"status": status, "name": name, "limit": limit}
        if labels:
            query["label"] = [f"{key}:{value}" for key, value in labels.items()]
        async for job in self._connection.pages("/jobs", JobSummary, **query):
            yield job

    @Operation
    async def diff(self, a: str, b: str) -> JobChange:
        """Return what two jobs differ in: configs, inputs, environment and results."""
        return await self._connection.get("/jobs/diff", JobChange, a=a, b=b)

    @Operation
    async def run(self, run_id: str) -> RemoteRun[Mode]:
        """Return a run of any job; raises ObjectMissing."""
        return await self._connection.get(f"/runs/{run_id}", RemoteRun[Mode])


def make_spec(
    spec: Mapping[str, Any] | None, stages: Stages | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of a job: its spec, with `stages` and the other fields in place of those it has."""
    body = {**(spec or {}), **fields}
    if stages is not None:
        body["stages"] = stages
    converted: dict[str, Any] = as_json(body)
    if "name" not in converted:
        kinds = [stage.get("stage") for stage in converted.get("stages", []) if isinstance(stage, dict)]
        converted["name"] = "-".join(str(kind) for kind in kinds[:3]) or "job"
    return converted
