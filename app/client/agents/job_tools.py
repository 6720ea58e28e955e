"""Tools for jobs: planning, starting, following and ending them."""

import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from pydantic import Field

from app.client.agents.answers import JobAnswer, LogAnswer, PlanAnswer, describe_job, describe_plan, shorten
from app.client.agents.asking import (
    Consent,
    ask,
    ask_before,
    ask_before_costs,
    describe_costs,
    require,
)
from app.client.agents.tool import ADDS, DESTROYS, READS, add_tool, describe_error
from app.client.api.errors import ClientError, WaitTimeout, WorkFailed
from app.client.api.modes import Concurrent
from app.client.clients import AsyncClient
from app.client.stage_fields import StageField, list_fields, list_forms, read_schema
from app.client.views.jobs import RemoteJob

MAX_WAIT_SECONDS = 600
MAX_LOG_LINES = 400
MAX_SCHEMA_CHARACTERS = 8_000

Spec = Annotated[
    dict[str, Any],
    Field(description='A job: {"name": …, "stages": [{"stage": "sft", "base": …, "dataset": …}, …]}.'),
]
Wait = Annotated[
    float,
    Field(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait at most; the job continues after them."),
]
Confirm = Annotated[
    str, Field(description="What the tool's question names, once the person has agreed to it.")
]


class JobTools:
    """From a spec to a finished job."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def add_to(self, server: MCPServer) -> None:
        """Offer the tools."""
        add_tool(server, self.describe_stage, READS)
        add_tool(server, self.dry_run, READS)
        add_tool(server, self.preflight, ADDS)
        add_tool(server, self.submit_job, ADDS)
        add_tool(server, self.follow_job, READS)
        add_tool(server, self.read_log, READS)
        add_tool(server, self.make_change_job(), ADDS)
        add_tool(server, self.cancel_job, DESTROYS)

    async def describe_stage(
        self,
        stage: Annotated[str, Field(description="Kind of a stage, such as sft, dpo, grpo or evaluate.")],
        field: Annotated[
            str | None,
            Field(description="Field whose JSON schema is returned, such as tuning or metrics.bleu."),
        ] = None,
    ) -> dict[str, Any]:
        """Return the fields of a stage, each with its type, default and meaning on one line.

        The line ends after the first sentence of the meaning: call it with `field` for the rest.
        """
        if field is not None:
            schema = read_schema(stage, field)
            forms = list_forms(schema)
            if len(json.dumps(schema)) <= MAX_SCHEMA_CHARACTERS or not forms:
                return schema
            note = f"Too long: call it with field={field}.{forms[0]}, or another form."
            return {"description": schema.get("description", ""), "forms": forms, "note": note}
        return {one.name: _describe_field(one) for one in list_fields(stage)}

    async def dry_run(self, spec: Spec) -> PlanAnswer:
        """Check a job and resolve its defaults: hardware, steps, warnings. Nothing starts; nothing costs."""
        plan = await self._client.jobs.plan(spec)
        return describe_plan(plan, ["preflight with the same spec", "submit_job with the same spec"])

    async def preflight(
        self,
        spec: Spec,
        context: Context,
        probe_steps: Annotated[int, Field(ge=0, le=50, description="Steps to time; 0 for none.")] = 0,
        wait_seconds: Wait = 300,
    ) -> JobAnswer:
        """Check data, model, settings and memory of a job on its worker, before anything trains.

        Errors and warnings are in the `result` of each stage.
        """
        checked = await self._client.jobs.preflight(spec, probe_steps=probe_steps)
        job = await self._follow(checked.job, wait_seconds, context)
        done = ["submit_job with the same spec, if no result has an error"]
        return describe_job(job, done if job.finished else [f"follow_job job_id={job.id}"])

    async def submit_job(
        self,
        spec: Spec,
        consent: Annotated[Consent, Resolve(ask_before_costs)],
        idempotency_key: Annotated[
            str | None,
            Field(description="The same key and spec start one job only, however often it is called."),
        ] = None,
        confirm: Confirm = "",
    ) -> JobAnswer:
        """Start a job. Call dry_run before. A job that launches a machine in a cloud asks first."""
        require(consent)
        job = await self._client.jobs.create(spec, idempotency_key=idempotency_key)
        return describe_job(job, [f"follow_job job_id={job.id}"])

    async def follow_job(self, job_id: str, context: Context, wait_seconds: Wait = 120) -> JobAnswer:
        """Return the state of a job once it has ended or the time is over. Call it again until `finished`."""
        job = await self._follow(await self._client.jobs.get(job_id), wait_seconds, context)
        return describe_job(job, _next_after(job))

    async def read_log(
        self,
        run_id: Annotated[str, Field(description="Id of a run, from the stages of follow_job.")],
        lines: Annotated[int, Field(ge=1, le=MAX_LOG_LINES)] = 60,
    ) -> LogAnswer:
        """Return the last lines of the log of a run."""
        run = await self._client.jobs.run(run_id)
        last: deque[str] = deque(maxlen=lines)
        async for line in run.logs():
            last.append(shorten(line))
        return LogAnswer(run_id=run_id, lines=list(last))

    def make_change_job(self) -> Callable[..., Awaitable[JobAnswer]]:
        """Return the tool whose question depends on the job, which is read before it is asked."""

        async def ask_before_start(
            job_id: str, action: str, context: Context, confirm: str = ""
        ) -> Elicit[Consent] | Consent:
            question = None if action == "pause" else describe_costs((await read_job(job_id)).spec)
            return Consent(confirmed=True) if question is None else ask(question, job_id, confirm, context)

        async def read_job(job_id: str) -> RemoteJob[Concurrent]:
            try:
                return await self._client.jobs.get(job_id)
            except ClientError as error:
                raise ToolError(describe_error(error)) from error

        async def change_job(
            job_id: str,
            action: Literal["pause", "resume", "retry"],
            consent: Annotated[Consent, Resolve(ask_before_start)],
            confirm: Confirm = "",
        ) -> JobAnswer:
            """Pause a job after a checkpoint, resume a paused one, or retry a failed or cancelled one.

            Resuming or retrying a job that launches a machine in a cloud asks first.
            """
            require(consent)
            job = await self._client.jobs.get(job_id)
            actions = {"pause": job.pause, "resume": job.resume, "retry": job.retry}
            return describe_job(await actions[action](), [f"follow_job job_id={job_id}"])

        return change_job

    async def cancel_job(
        self,
        id: Annotated[str, Field(description="Id of the job.")],
        consent: Annotated[Consent, ask_before(lambda id: f"Cancel the job {id}, with all of its runs?")],
        confirm: Confirm = "",
    ) -> JobAnswer:
        """Cancel a job, after asking. Checkpoints stay, and retry continues from them."""
        require(consent)
        job = await self._client.jobs.get(id)
        return describe_job(await job.cancel(), [f"follow_job job_id={id}"])

    async def _follow(
        self, job: RemoteJob[Concurrent], seconds: float, context: Context
    ) -> RemoteJob[Concurrent]:
        async def report(job: RemoteJob[Concurrent]) -> None:
            running = next((run for run in job.runs if run.status == "running"), None)
            state = f"{running.name} step {running.step}" if running else job.status
            await context.report_progress(job.progress, 1.0, state)

        # The answer has the status, and the error of a job that has failed.
        with suppress(WaitTimeout, WorkFailed):
            await job.wait(seconds, report)
        return job


def _describe_field(one: StageField) -> str:
    default = "required" if one.required else f"default {json.dumps(one.default, ensure_ascii=False)}"
    return f"{one.type}, {default}: {one.meaning}"


def _next_after(job: RemoteJob[Any]) -> list[str]:
    if not job.finished:
        return [f"follow_job job_id={job.id}"]
    if job.status == "failed":
        failed = next((run for run in job.runs if run.status == "failed"), None)
        log = [f"read_log run_id={failed.id}"] if failed else []
        return [*log, f"change_job job_id={job.id} action=retry, once the cause is removed"]
    steps = [f"show_scores job_id={job.id}"] if any(run.stage == "evaluate" for run in job.runs) else []
    deployments = [run.config.get("deployment") for run in job.runs if run.stage == "deploy"]
    if deployments and deployments[-1]:
        return [*steps, f"chat models=[{deployments[-1]}, …]"]
    return [*steps, *([f"deploy model={job.model_id}"] if job.model_id else [])]
