"""An agent's way through the tools: from a messy Korean table to a served model that is proved better.

Method: the tools run as an agent starts them, `tunesmith mcp` on standard input and output, against a service
with a worker. Every decision below is one that the results of the tools and the skill lead to.
"""

import csv
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.e2e.platform import Platform
from trainers.data.recipes.arithmetic import ProblemSplit
from trainers.data.recipes.sentences import generate_pairs

REQUEST = "Translate into English: {한국어}"
FIELDS = {"prompt": REQUEST, "completion": "{영어}"}
# The lines of the planted faults. The whole file is in cp949 (1), its columns have names of no format (2),
# and it has a column that no format reads (3).
FAULTS = {
    "cells too few (4)": "사과는 빨갛다\n",
    "a cell too many (5)": "물은 차갑다,Water, is cold.,메모\n",
    "a quote that is not doubled (6)": '"그는 "좋다"고 했다","He said ""good"".",\n',
    "an empty translation (7)": "책이 있다,,\n",
    "an empty source (8)": ",There is a book.,\n",
    "white space for a translation (9)": "시계가 있다,   ,\n",
    "a row that stands twice (10)": None,
    "bytes of another encoding (11)": b"\xff\xfe\xb0,Broken bytes.,\n",
    "a line without anything (12)": "\n",
}


def make_table(path: Path) -> None:
    """Write 300 pairs with twelve faults between them."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["한국어", "영어", "비고"])
    pairs = generate_pairs(300, ProblemSplit.train, seed=0)
    writer.writerows([pair.korean, pair.english, ""] for pair in pairs)
    lines = [line.encode("cp949") + b"\n" for line in written.getvalue().splitlines()]
    for number, fault in enumerate(FAULTS.values(), start=1):
        line = lines[5] if fault is None else fault if isinstance(fault, bytes) else fault.encode("cp949")
        lines.insert(30 * number, line)
    path.write_bytes(b"".join(lines))


@asynccontextmanager
async def start_tools(platform: Platform) -> AsyncIterator[Client]:
    """Yield a client of `tunesmith mcp`, which has the service's address from its environment."""
    environment = platform.environment | {"TUNESMITH_URL": platform.base_url}
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "tunesmith", "mcp"], env=environment
    )
    async with Client(stdio_client(parameters)) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    print(f"{tool}: {str(result.structured_content)[:300]}")
    return result.structured_content


async def finish(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Follow a job as the tools say, until it has ended."""
    state = job
    while not state["finished"]:
        state = await call(client, "follow_job", job_id=job["job_id"], wait_seconds=60)
    assert state["status"] == "succeeded", state["error"]
    return dict(state)


async def clean(client: Client, table: Path) -> Path:
    """Repair the table until its check has no fault and no warning."""
    path, clean_path = str(table), table.with_name("train.jsonl")
    first = await call(client, "check_data", path=path)
    assert first["fault_counts"] == {"wrong_encoding": 1} and "cp949" in first["next"][0]
    second = await call(client, "check_data", path=path, encoding="cp949")
    assert second["fault_counts"].keys() == {
        "unknown_format", "wrong_columns", "invalid_csv", "invalid_utf8",
    }  # fmt: skip
    header = await call(client, "show_lines", path=path, count=3, encoding="cp949")
    assert header["lines"]["1"] == "한국어,영어,비고"
    repaired = await call(
        client,
        "repair_data",
        path=path,
        to=str(clean_path),
        fields=FIELDS,
        remove_unusable=True,
        remove_duplicates=True,
        encoding="cp949",
    )
    reasons = " ".join(repaired["removed_rows"].values())
    assert len(repaired["removed_rows"]) == 8
    for expected in ("1 cell,", "4 cells", "not valid CSV", "bytes that are not text", "equals row"):
        assert expected in reasons
    assert repaired["report"]["trainable"] and repaired["report"]["warning_counts"] == {}
    assert repaired["rows"] == 300
    return clean_path


def write_test(path: Path) -> None:
    pairs = generate_pairs(60, ProblemSplit.held_out, seed=0)
    with path.open("w", encoding="cp949", newline="") as file:
        csv.writer(file).writerows([("한국어", "영어"), *((pair.korean, pair.english) for pair in pairs)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twelve_faults_are_found_and_the_served_model_is_better(shared: Platform, tmp_path: Path) -> None:
    make_table(tmp_path / "pairs.csv")
    write_test(tmp_path / "held_out.csv")

    async def walk() -> None:
        async with start_tools(shared) as client:
            train = await clean(client, tmp_path / "pairs.csv")
            test = tmp_path / "test.jsonl"
            await call(
                client,
                "repair_data",
                path=str(tmp_path / "held_out.csv"),
                to=str(test),
                fields=FIELDS,
                encoding="cp949",
            )
            for path in (train, test):
                assert (await call(client, "push_data", path=str(path), name=f"ko-en-{path.stem}"))[
                    "trainable"
                ]
            base = "starter"
            training = {
                "tuning": {"method": "full"},
                "max_steps": 250,
                "batch_size": 16,
                "learning_rate": 0.004,
            }
            spec = {
                "name": "ko-en",
                "stages": [
                    {"stage": "sft", "base": base, "dataset": "ko-en-train", **training},
                    {"stage": "evaluate", "model": {"stage": "sft"}, "baseline": base,
                     "dataset": "ko-en-test", "metrics": ["chrf", "bleu"], "max_new_tokens": 48},
                    {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "ko-en"},
                ],
            }  # fmt: skip
            plan = await call(client, "dry_run", spec=spec)
            assert [stage["stage"] for stage in plan["stages"]] == ["sft", "evaluate", "deploy"]
            checked = await call(client, "preflight", spec=spec, wait_seconds=120)
            await finish(client, checked)
            job = await finish(client, await call(client, "submit_job", spec=spec, idempotency_key="walk"))
            scores = await call(client, "show_scores", job_id=job["job_id"])
            chrf = next(one for one in scores["differences"] if one["metric"] == "chrf")
            assert (chrf["verdict"], scores["n"]) == ("better", 60) and scores["changed_rows"]
            served = await call(client, "deploy", model=base, name="ko-en-base")
            assert served["status"] == "ready"
            pair = generate_pairs(1, ProblemSplit.held_out, seed=3)[0]
            message = REQUEST.format(한국어=pair.korean)
            replies = (await call(client, "chat", models=["ko-en", "ko-en-base"], message=message))["replies"]
            assert replies["ko-en"] != replies["ko-en-base"]
            print(message, replies, pair.english)

    anyio.run(walk)
