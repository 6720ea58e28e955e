"""A batch gives a client no more than its single requests: the same fields, and no file or address of a host.

Attacks: lines with fields that make an engine read files, jobs that name a batch, a file or an engine
themselves, and a look for the addresses of engines among a run's files.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from serving.batch.engine_table import EngineTable
from serving.batch.files import CONTROL, STATE
from serving.batch.input_file import read_input
from serving.batch.journal import Journal
from serving.batch.lane import Lane
from serving.gateway.connection_pool import ConnectionPool
from tests.security.regression import Regression
from tests.security.test_request_fields import HOSTILE_FIELDS
from trainers.configs import BatchConfig, BatchEndpoint


@pytest.mark.parametrize("endpoint", BatchEndpoint)
def test_a_line_with_a_field_that_is_not_listed_reaches_no_engine(
    endpoint: BatchEndpoint, tmp_path: Path
) -> None:
    rows = [{"model": "m", field: {"x": "y"}} for field in HOSTILE_FIELDS]
    rows += [{"model": "m", "previous_response_id": "resp_x"}]
    answers = send(tmp_path, endpoint, rows)
    assert [answer["response"]["status_code"] for answer in answers] == [400] * len(rows)
    named = [answer["response"]["body"]["error"]["param"] for answer in answers]
    assert named == [*HOSTILE_FIELDS, "previous_response_id"]


def send(folder: Path, endpoint: BatchEndpoint, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send requests to an engine that completes everything, and return the answers, in order."""
    lines = [
        {"custom_id": f"r{number:03d}", "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies)
    ]
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, faults = read_input(path, endpoint, None)
    assert faults == []
    journal = Journal(folder / "journal", found)

    async def run() -> None:
        runner = web.AppRunner(_create_engine())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        engine = {"url": f"http://127.0.0.1:{runner.addresses[0][1]}", "model": "m"}
        table = EngineTable(BatchConfig.model_validate({"engines": {"m": engine}}), folder)
        lane = Lane("m", iter(range(len(found))), found, journal, table, ConnectionPool(), "b", 4)
        writing = asyncio.create_task(journal.write_groups())
        await lane.run()
        await journal.flush()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await runner.cleanup()

    asyncio.run(run())
    journal.close()
    rows = [json.loads(row) for row in journal.path.read_text().splitlines()]
    return sorted(rows, key=lambda row: str(row["custom_id"]))


def _create_engine() -> web.Application:
    async def complete(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/{path:.*}", complete)
    return app


@pytest.mark.parametrize("batch", ["../../etc", "batch_x", "batch_" + "A" * 26, "batch_" + "0" * 26 + "\n"])
def test_the_id_of_a_batch_is_no_path(batch: str) -> None:
    with pytest.raises(ValidationError):
        BatchConfig(batch=batch)


def test_the_addresses_of_engines_are_not_among_the_files_of_a_run() -> None:
    # `publish_files` leaves out names that begin with a dot.
    assert [name for name in (CONTROL, STATE, BatchConfig.completions_file) if not name.startswith(".")] == []


REGRESSIONS = [
    Regression(
        "unknown fields of lines are forwarded",
        "serving.gateway.request_body:_remove_neutral_fields",
        lambda path, fields: None,
        "test_a_line_with_a_field_that_is_not_listed_reaches_no_engine",
    ),
]
