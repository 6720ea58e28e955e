"""Tools for models: comparing, serving and talking to them."""

from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from app.client.agents.answers import (
    ChatAnswer,
    DeploymentAnswer,
    DoneAnswer,
    DownloadAnswer,
    ListAnswer,
    ScoresAnswer,
    describe_deployment,
    shorten,
)
from app.client.agents.asking import Consent, ask_before, require
from app.client.agents.job_tools import Confirm, Wait
from app.client.agents.tool import ADDS, DESTROYS, READS, add_tool
from app.client.api.errors import DeploymentFailed, WaitTimeout
from app.client.clients import AsyncClient

MAX_ITEMS = 100
MAX_MODELS = 5
NOUNS = {"job": "jobs", "dataset": "datasets", "model": "models", "deployment": "deployments"}
OMITTED = ("spec", "config", "report", "lineage", "host_report", "versions", "provenance")

Noun = Literal["jobs", "datasets", "models", "deployments", "evaluations", "workers", "presets"]


class ModelTools:
    """From a trained model to one that is compared and served."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def add_to(self, server: MCPServer) -> None:
        """Offer the tools."""
        for read in (self.list_objects, self.show_scores, self.chat):
            add_tool(server, read, READS)
        add_tool(server, self.deploy, ADDS)
        add_tool(server, self.download_model, ADDS)
        add_tool(server, self.stop_deployment, DESTROYS)
        add_tool(server, self.delete, DESTROYS)

    async def list_objects(
        self,
        kind: Noun,
        name: Annotated[str | None, Field(description="Only those with this name.")] = None,
        limit: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 20,
    ) -> ListAnswer:
        """List jobs, datasets, models, deployments, evaluations, workers or presets, newest first."""
        query = {"limit": limit, **({"name": name} if name else {})}
        if kind == "presets":
            query = {}
        page = await self._client.request("GET", f"/{kind}", params=query)
        found = page["items"] if isinstance(page, dict) else page
        items = [shorten({key: value for key, value in one.items() if key not in OMITTED}) for one in found]
        return ListAnswer(items=items[:limit], more=isinstance(page, dict) and bool(page.get("next")))

    async def show_scores(
        self,
        job_id: Annotated[str, Field(description="A job with an evaluate stage.")],
        rows: Annotated[int, Field(ge=0, le=20, description="Number of rows that changed most.")] = 5,
    ) -> ScoresAnswer:
        """Compare the models that a job has evaluated: scores with n and 95 % intervals, and differences.

        A difference is believable if its verdict is `better` or `worse`; `undecided` means that
        the rows cannot tell. `changed_rows` are those on which the responses differ most.
        """
        job = await self._client.jobs.get(job_id)
        evaluations = await job.evaluations()
        if not evaluations:
            raise ToolError(
                f"The job {job_id} has no evaluation yet: its status is {job.status}. Follow it until it has "
                "succeeded; a job without a stage `evaluate` has none."
            )
        first, rest = evaluations[0], evaluations[1:]
        whole = await self._client.evaluations.get(first.id)
        changed: list[dict[str, Any]] = []
        if rows and rest:
            async for row in whole.rows(against=rest[0].id):
                changed.append(shorten(row.model_dump(exclude_none=True)))
                if len(changed) == rows:
                    break
        return ScoresAnswer(
            n=first.n,
            scores={f"{one.role} ({one.model_id or one.model})": one.scores for one in evaluations},
            differences=whole.differences,
            changed_rows=changed,
            warnings=whole.warnings,
            next=[f"deploy model={first.model_id}"] if first.model_id else [],
        )

    async def deploy(
        self,
        model: Annotated[str, Field(description="Id of a model, or a base: hub id or folder.")],
        name: Annotated[str, Field(description="Name for chats.")],
        options: Annotated[
            dict[str, Any] | None,
            Field(description="Other fields of the API's deployment, such as engine or queue."),
        ] = None,
        wait_seconds: Wait = 300,
    ) -> DeploymentAnswer:
        """Serve a model, and wait until it is ready: it is proved to answer as the trained weights do."""
        deployment = await self._client.deployments.create(name, model, **(options or {}))
        try:
            await deployment.wait(wait_seconds)
        except (WaitTimeout, DeploymentFailed):
            # The answer has the status, what it waits for, and the error.
            await deployment.refresh()
        ready = deployment.status == "ready"
        return describe_deployment(deployment, [f"chat models=[{name}]"] if ready else [])

    async def chat(
        self,
        models: Annotated[
            list[str], Field(min_length=1, max_length=MAX_MODELS, description="Names of deployments.")
        ],
        message: Annotated[str, Field(description="The user's message.")],
        system: str | None = None,
        max_tokens: Annotated[
            int | None, Field(ge=1, description="Default: what the model's window leaves.")
        ] = None,
        temperature: Annotated[float, Field(ge=0, le=2)] = 0.0,
        seed: int = 0,
    ) -> ChatAnswer:
        """Send the same message to one deployed model or several, with the same seed."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": message})
        options: dict[str, Any] = {"temperature": temperature, "seed": seed}
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        replies = {name: str(await self._client.chat(name, messages, **options)) for name in models}
        return ChatAnswer(replies=replies)

    async def download_model(
        self,
        model: Annotated[str, Field(description="Id of a model.")],
        to: Annotated[str, Field(description="A folder.")],
        merged: Annotated[bool, Field(description="The whole weights that a merge stage has made.")] = False,
    ) -> DownloadAnswer:
        """Download a model's files into a folder, each compared with its hash."""
        folder = await self._client.models.download(model, to, merged=merged)
        return DownloadAnswer(path=str(folder))

    async def stop_deployment(
        self,
        id: Annotated[str, Field(description="Id of the deployment.")],
        consent: Annotated[
            Consent, ask_before(lambda id: f"Stop the deployment {id}, which ends its requests?")
        ],
        confirm: Confirm = "",
    ) -> DeploymentAnswer:
        """Stop serving a model, after asking. The model stays."""
        require(consent)
        deployment = await self._client.deployments.get(id)
        return describe_deployment(await deployment.stop(), [])

    async def delete(
        self,
        id: Annotated[str, Field(description="Id of a job, dataset, model or deployment.")],
        consent: Annotated[Consent, ask_before(lambda id: f"Delete {id} with its files, for ever?")],
        confirm: Confirm = "",
    ) -> DoneAnswer:
        """Delete an object that nothing uses, after asking."""
        require(consent)
        noun = NOUNS.get(id.partition("_")[0])
        if noun is None:
            begins = ", ".join(f"{noun}_" for noun in NOUNS)
            raise ToolError(f"{id!r} cannot be deleted: expected an id that begins with one of {begins}.")
        await self._client.request("DELETE", f"/{noun}/{id}")
        return DoneAnswer(done=f"{id} is deleted.")
