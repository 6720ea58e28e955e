"""Ask a fine-tuned model at OpenAI once for each row of a dataset, and keep its responses.

The key is read from OPENAI_API_KEY. Each response is appended to `responses.jsonl` in the run directory: the
same command on the same directory asks for the missing ones only.

    OPENAI_API_KEY=… python -m trainers.record --config record.yaml --run-dir runs/recorded
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from trainers.configs.base import DatasetPart
from trainers.configs.stages.migration.record import RESPONSE, RecordConfig
from trainers.data.files.jsonl import save_rows
from trainers.data.formats import Row
from trainers.evaluation.checkpoints import CompletionProgress, restore_completions
from trainers.fetch.recorded_rows import ASSISTANT, WITHOUT_REFERENCE
from trainers.openai_account.client import AccountClient, AccountRefused
from trainers.openai_account.pace import Pace
from trainers.record.answers import FAILED, RECORDED, REFUSED
from trainers.record.journal import RecordJournal
from trainers.record.recorder import Recorder, describe_answers, journal_path
from trainers.rendering.render import dataset_path, read_rows
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program, stop_after_step
from trainers.runtime.verified_files import hash_file

FOLDER = "datasets"


def run(config: RecordConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Record what is missing, write the datasets, and return the counts and the cost."""
    rows = _load_rows(config)
    path = journal_path(run_dir)
    restore_completions(path)
    with (
        stop_after_step() as stop,
        closing(RecordJournal(path, _identify(config))) as journal,
        AccountClient.from_environment(Pace(config.requests_per_minute)) as client,
    ):
        progress = CompletionProgress(path, events, len(rows))
        recorder = Recorder(config, rows, journal, client)
        recorder.record_all(config.concurrency, events, stop, progress.report)
        answers, n_asked_again = journal.answers, journal.n_asked_again
    counts = describe_answers(answers)
    if not counts.get(RECORDED):
        first = next(iter(answers.values()))
        raise AccountRefused(
            f"The model has responded to none of {len(rows)} prompts. {first.get('error') or ''}"
        )
    if n_refused := counts.get(REFUSED, 0):
        events.write_warning(
            "prompts_refused",
            f"{n_refused} of {len(rows)} prompts have no response: OpenAI refused their content, which "
            f"counts as wrong. The reasons are in {path.name}.",
        )
    if n_failed := counts.get(FAILED, 0):
        first = next(answer for answer in answers.values() if answer["status"] == FAILED)
        events.write_warning(
            "requests_failed",
            f"{n_failed} of {len(rows)} requests failed, which says nothing about the model: their rows are "
            f"not compared. The first: {first['error']}",
        )
    return {
        "stage": "record",
        "rows": len(rows),
        "counts": counts,
        "asked_again": n_asked_again,
        "tokens": recorder.budget.tokens,
        "cost": round(recorder.budget.spent, 6) if config.input_price is not None else None,
        "with_logprobs": sum("logprobs" in answer for answer in answers.values()),
        "datasets": _write_datasets(run_dir, rows, answers),
    }


def plan(config: RecordConfig) -> dict[str, Any]:
    """Return the number of requests and the bound of the cost, without a request."""
    rows = _load_rows(config)
    return {
        "stage": "record",
        "rows": len(rows),
        "max_completion_tokens": config.max_completion_tokens,
        "requests_per_minute": config.requests_per_minute,
        "max_cost": config.max_cost,
    }


def _load_rows(config: RecordConfig) -> dict[int, Row]:
    rows = dict(read_rows(dataset_path(config.dataset)))
    for number, row in rows.items():
        messages = row.get("messages")
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1].get("role") != ASSISTANT:
            raise DatasetInvalid(
                f"Row {number} is not a conversation that ends with a reference.",
                "Record the part `test` of a `fetch` stage.",
            )
        if RESPONSE in row:
            raise DatasetInvalid(
                f"Row {number} has a field {RESPONSE!r}, which the response would replace.",
                "Rename the field in your own copy of the file, and create the rescue again with it.",
            )
    if not rows:
        raise DatasetInvalid("The dataset has no rows.", "Add prompts.")
    return rows


def _identify(config: RecordConfig) -> str:
    """Return a hash of everything on which a response depends."""
    sampling = config.model_dump(
        mode="json", include={"fine_tuned_model", "max_completion_tokens", "temperature", "seed", "logprobs"}
    )
    content = {**sampling, "dataset": hash_file(dataset_path(config.dataset))}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_datasets(
    run_dir: Path, rows: Mapping[int, Row], answers: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write the rows that have a reference, and all prompts with the response as their reference."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    parts = {
        DatasetPart.test: _add_responses(rows, answers),
        DatasetPart.validation: _replace_references(rows, answers),
    }
    written = []
    for part, content in parts.items():
        path = f"{FOLDER}/{part}.jsonl"
        if count := save_rows(run_dir / path, content):
            written.append({"part": part, "path": path, "rows": count})
    return written


def _add_responses(rows: Mapping[int, Row], answers: Mapping[int, Mapping[str, Any]]) -> Iterator[Row]:
    for number, row in rows.items():
        if not row.get(WITHOUT_REFERENCE):
            answer = answers[number]
            if answer["status"] == FAILED:
                continue
            # Null is no response, which counts as wrong.
            text = answer["response"] if answer["status"] == RECORDED else None
            calls = {f"{RESPONSE}_tool_calls": answer["tool_calls"]} if answer.get("tool_calls") else {}
            yield {**row, RESPONSE: text, **calls, f"{RESPONSE}_status": answer["status"]}


def _replace_references(rows: Mapping[int, Row], answers: Mapping[int, Mapping[str, Any]]) -> Iterator[Row]:
    for number, row in rows.items():
        answer = answers[number]
        if answer["status"] == RECORDED and (answer["response"] or answer.get("tool_calls")):
            message = {"role": ASSISTANT, "content": answer["response"] or None}
            if answer.get("tool_calls"):
                message["tool_calls"] = answer["tool_calls"]
            yield {**row, "messages": [*row["messages"][:-1], message]}


if __name__ == "__main__":
    run_program(RecordConfig, run, plan)
