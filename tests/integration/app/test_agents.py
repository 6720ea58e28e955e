"""The tools of agents against the service as a process, by the protocol's own client.

Method: a service without a worker. What a tool does is read back by another tool.
"""

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult

from app.client.agents.server import INSTRUCTIONS, SKILL_ADDRESS, create_server
from app.client.agents.skill import read_skill
from app.client.clients import AsyncClient
from tests.integration.app.test_server import serving
from trainers.configs import StageKind

SPEC = {"name": "tried", "stages": [{"stage": "prepare", "dataset": "rows", "split": {"test": 1}}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder, "--no-worker") as (_, address):
        yield address


@asynccontextmanager
async def connect(url: str, answer: str | None = None) -> AsyncIterator[Client]:
    """Yield a client of the tools; one with an `answer` can ask its person, who gives it."""
    asked: list[str] = []

    async def ask(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params.message)
        if answer == "decline":
            return ElicitResult(action="decline")
        return ElicitResult(action="accept", content={"confirmed": answer == "yes"})

    async with AsyncClient(url) as service:
        server = create_server(service)
        async with Client(server, elicitation_callback=ask if answer else None) as client:
            yield client
    assert bool(asked) == (answer is not None)


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """Return the structured result of a tool, or the text of its error."""
    result = await client.call_tool(tool, arguments)
    return result.content[0].text if result.is_error else result.structured_content  # type: ignore[union-attr]


async def start_job(client: Client, folder: Path, key: str) -> str:
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "1", "completion": "2"}\n{"prompt": "2", "completion": "3"}\n')
    stored = await call(client, "push_data", path=str(rows))
    assert stored["trainable"] and stored["dataset"] == "rows"
    job = await call(client, "submit_job", spec=SPEC, idempotency_key=key)
    assert job["next"] == [f"follow_job job_id={job['job_id']}"]
    return str(job["job_id"])


def test_a_job_is_planned_started_once_and_followed(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connect(url) as client:
            job = await start_job(client, tmp_path, "once")
            assert await start_job(client, tmp_path, "once") == job
            plan = await call(client, "dry_run", spec=SPEC)
            assert [stage["queue"] for stage in plan["stages"]] == ["cpu"]
            state = await call(client, "follow_job", job_id=job, wait_seconds=0)
            assert (state["status"], state["finished"]) == ("queued", False)
            assert "worker" in state["stages"][0]["waiting_for"]
            listed = await call(client, "list_objects", kind="jobs", name="tried")
            assert job in [one["id"] for one in listed["items"]]

    anyio.run(main)


@pytest.mark.parametrize(
    ("answer", "status"), [("yes", "cancelled"), ("no", "queued"), ("decline", "queued")]
)
def test_what_loses_something_asks_the_person(url: str, tmp_path: Path, answer: str, status: str) -> None:
    async def main() -> None:
        async with connect(url, answer) as client:
            job = await start_job(client, tmp_path, answer)
            await call(client, "cancel_job", id=job, confirm=job)
            state = await call(client, "follow_job", job_id=job, wait_seconds=0)
            assert state["status"] == status

    anyio.run(main)


def test_a_program_that_cannot_ask_is_told_the_question(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connect(url) as client:
            job = await start_job(client, tmp_path, "told")
            for refused in ("cancel_job", "delete"):
                message = await call(client, refused, id=job)
                assert "Nothing was changed" in message and f"confirm='{job}'" in message
            cancelled = await call(client, "cancel_job", id=job, confirm=job)
            assert cancelled["status"] == "cancelled"
            assert (await call(client, "delete", id=job, confirm=job))["done"] == f"{job} is deleted."
            assert "[job_not_found]" in await call(client, "follow_job", job_id=job)

    anyio.run(main)


def test_a_job_that_costs_money_asks_before_it_is_sent(url: str) -> None:
    async def main() -> None:
        async with connect(url) as client:
            costly = SPEC | {"host": {"cloud": "lambda", "type": "gpu_1x_a10", "max_usd": 5}}
            message = await call(client, "submit_job", spec=costly)
            assert "in the cloud lambda, for up to 5 US dollars" in message and "confirm='tried'" in message

    anyio.run(main)


def add_host(folder: Path, job: str) -> None:
    """Give the spec of a job its host behind the API: no cloud has an account here."""
    with closing(sqlite3.connect(folder / "tunesmith.db")) as database, database:
        host = json.dumps({"cloud": "lambda", "max_usd": 5})
        database.execute("UPDATE job SET spec = json_set(spec, '$.host', json(?)) WHERE id = ?", (host, job))


@pytest.mark.parametrize(("answer", "status"), [("yes", "queued"), ("no", "paused"), ("decline", "paused")])
def test_a_costly_job_is_started_again_only_after_the_person_agrees(
    url: str, folder: Path, tmp_path: Path, answer: str, status: str
) -> None:
    async def main() -> None:
        async with connect(url, answer) as client:
            job = await start_job(client, tmp_path, f"costly {answer}")
            add_host(folder, job)
            await call(client, "change_job", job_id=job, action="pause")
            # What the program itself confirms is no answer of the person.
            await call(client, "change_job", job_id=job, action="resume", confirm=job)
            assert (await call(client, "follow_job", job_id=job, wait_seconds=0))["status"] == status

    anyio.run(main)


@pytest.mark.parametrize("action", ["resume", "retry"])
def test_a_job_that_costs_money_asks_before_it_is_started_again(
    url: str, folder: Path, tmp_path: Path, action: str
) -> None:
    async def main() -> None:
        async with connect(url) as client:
            job = await start_job(client, tmp_path, action)
            add_host(folder, job)
            await call(client, "change_job", job_id=job, action="pause")
            message = await call(client, "change_job", job_id=job, action=action)
            assert "in the cloud lambda, for up to 5 US dollars" in message and f"confirm='{job}'" in message
            assert (await call(client, "follow_job", job_id=job, wait_seconds=0))["status"] == "paused"
            message = await call(client, "change_job", job_id=job, action=action, confirm=job)
            assert "Ask the person" not in str(message)

    anyio.run(main)


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("dry_run", {"spec": {"stages": [{"stage": "sft", "dataset": "rows"}]}}, "base"),
        ("check_data", {"path": "/none.csv"}, "The file /none.csv cannot be read"),
        ("describe_stage", {"stage": "train"}, "Expected one of prepare"),
        ("describe_stage", {"stage": "sft", "field": "rate"}, "no field 'rate'"),
        ("show_scores", {"job_id": "job_none"}, "job_none"),
        ("change_job", {"job_id": "job_none", "action": "retry"}, "job_none"),
        ("delete", {"id": "alias_1", "confirm": "alias_1"}, "begins with one of job_, dataset_"),
        ("chat", {"models": ["none"], "message": "Hello"}, "none"),
    ],
)
def test_an_error_names_what_is_wrong_and_what_to_do(
    url: str, tool: str, arguments: dict[str, Any], expected: str
) -> None:
    async def main() -> None:
        async with connect(url) as client:
            message = await call(client, tool, **arguments)
            assert isinstance(message, str) and expected in message
            assert "Traceback" not in message

    anyio.run(main)


def test_a_stage_is_described_briefly_and_a_field_in_full(url: str) -> None:
    async def main() -> None:
        async with connect(url) as client:
            for stage in StageKind:
                assert len(json.dumps(await call(client, "describe_stage", stage=stage))) < 10_000
            fields = await call(client, "describe_stage", stage="sft")
            assert fields["batch_size"].startswith("integer ≥ 1, default 16: Rows per optimizer step")
            assert fields["tuning.rank"].startswith("integer ≥ 1 ≤ 1024, default 16: (lora)")
            tuning = await call(client, "describe_stage", stage="sft", field="tuning")
            assert "rank" in tuning["$defs"]["LoraTuning"]["properties"]
            assert (
                "bleu" in (await call(client, "describe_stage", stage="evaluate", field="metrics"))["forms"]
            )
            bleu = await call(client, "describe_stage", stage="evaluate", field="metrics.bleu")
            assert "tokenizer" in bleu["properties"]

    anyio.run(main)


def test_every_tool_that_the_skill_names_exists_and_every_tool_is_named(url: str) -> None:
    async def main() -> None:
        async with connect(url) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            read = await client.read_resource(SKILL_ADDRESS)
        text = read.contents[0].text  # type: ignore[union-attr]
        assert text == read_skill()
        assert {name for name in tools if f"`{name}" in text} == tools
        named = {word for word in INSTRUCTIONS.replace(",", " ").split() if "_" in word and "/" not in word}
        assert named <= tools | {"tunesmith://skill"}
        spec = json.loads(text.partition("```json")[2].partition("```")[0])
        assert [stage["stage"] for stage in spec["stages"]] == ["sft", "evaluate", "deploy"]

    anyio.run(main)
