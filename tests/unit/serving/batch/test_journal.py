"""The journal of a batch: what a killed program has left of it, and what it counts."""

import asyncio
import json
from pathlib import Path
from typing import Any

from serving.batch.input_file import BatchInput, read_input
from serving.batch.journal import Answer, Journal, failure_line, response_line
from serving.batch.results import write_results
from trainers.configs import BatchEndpoint

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}


def make_input(folder: Path, count: int) -> BatchInput:
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}
        for n in range(count)
    ]
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_input(path, BatchEndpoint.chat_completions, None)[0]


def answer(custom_id: str, status: int = 200, **body: Any) -> Answer:
    return response_line("batch_req_x", custom_id, status, "req", json.dumps(body).encode())


def add(journal: Journal, answers: dict[int, Answer]) -> None:
    async def run() -> None:
        writing = asyncio.create_task(journal.write_groups())
        for number, each in answers.items():
            await journal.add(number, each)
        await journal.flush()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        journal.close()

    asyncio.run(run())


def test_a_journal_continues_after_its_last_complete_line(tmp_path: Path) -> None:
    lines, path = make_input(tmp_path, 4), tmp_path / "journal"
    answers = {0: answer("r0", usage=USAGE), 2: answer("r2", 400), 3: failure_line("x", "r3", "gone", "!")}
    add(Journal(path, lines), answers)
    path.write_bytes(path.read_bytes()[:-1])
    again = Journal(path, lines)
    again.close()
    assert len(path.read_bytes().splitlines()) == 2
    assert list(again.done) == [1, 0, 1, 0]
    assert (again.state.total, again.state.completed, again.state.failed) == (4, 1, 1)
    assert again.state.usage.model_dump() == {
        "input_tokens": 3,
        "output_tokens": 2,
        "cached_tokens": 1,
        "reasoning_tokens": 0,
    }


def test_a_usage_of_another_form_is_not_counted(tmp_path: Path) -> None:
    lines = make_input(tmp_path, 2)
    journal = Journal(tmp_path / "journal", lines)
    add(journal, {0: answer("r0", usage=[]), 1: answer("r1", usage={"prompt_tokens": "many"})})
    assert (journal.state.completed, journal.state.usage.input_tokens) == (2, 0)
    again = Journal(tmp_path / "journal", lines)
    again.close()
    assert again.state == journal.state


def test_successes_and_failures_are_separate_files(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    add(Journal(path, make_input(tmp_path, 2)), {1: answer("r1", 500), 0: answer("r0")})
    write_results(path, tmp_path)
    names = [json.loads((tmp_path / "batch" / name).read_text()) for name in ("output.jsonl", "errors.jsonl")]
    assert [each["custom_id"] for each in names] == ["r0", "r1"]
