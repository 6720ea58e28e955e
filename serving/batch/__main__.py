"""Send the requests of a file to engines, and write the responses as OpenAI's batch files.

Each response is appended to `.responses.jsonl` in the run directory: the same command on the same directory
asks for the missing ones only. A worker starts it for `POST /v1/batches`. By hand:

    python -m serving --engine hf --model starter --port 8001
    python -m serving.batch --config batch.yaml --run-dir runs/batch

where the config has `input: requests.jsonl` and `engines: {starter: {url: http://127.0.0.1:8001, model:
starter}}`. The results are `batch/output.jsonl` and `batch/errors.jsonl` in the run directory.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

from serving.batch.engine_table import EngineTable
from serving.batch.files import JOURNAL, STATE, BatchState, LineFault, write_replaced
from serving.batch.input_file import BatchInput, read_input
from serving.batch.journal import Journal
from serving.batch.results import write_results
from serving.batch.sender import BatchSender, Outcome
from trainers.configs.stages.serving.batch import BatchConfig
from trainers.evaluation.checkpoints import restore_completions
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, DatasetFileNotFound, ProgramError
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopRequested, run_program, stop_after_step

logger = logging.getLogger("trainers")


class BatchInvalid(ProgramError):
    code = ErrorCode.batch_invalid


def run(config: BatchConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Send what has no response yet, and return the counts, which become `result.json`."""
    with stop_after_step() as stop:
        engines = EngineTable(config, run_dir)
        lines, faults = _read_lines(config, engines)
        if faults:
            write_replaced(run_dir / STATE, BatchState(faults=faults))
            raise BatchInvalid(
                _describe(faults), "Correct the file, upload it again, and create a new batch."
            )
        journal_path = run_dir / JOURNAL
        restore_completions(journal_path)
        journal = Journal(journal_path, lines)
        journal.state.validated, journal.state.first_model = True, lines.models[0]
        journal.state.models = lines.models
        write_replaced(run_dir / STATE, journal.state)
        sender = BatchSender(config, lines, journal, engines, events, run_dir, stop)
        outcome = asyncio.run(sender.send_all())
        state = journal.state
        events.write_progress(state.completed + state.failed, state.total)
        if outcome is Outcome.interrupted:
            raise StopRequested
        state.models, state.finalizing = [], True
        write_replaced(run_dir / STATE, state)
        write_results(journal_path, run_dir)
    logger.info("%s: %d completed, %d failed of %d", outcome, state.completed, state.failed, state.total)
    counts = state.model_dump(include={"total", "completed", "failed", "usage"})
    return {"stage": "batch", "outcome": outcome.value, **counts}


def plan(config: BatchConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without sending a request."""
    path = _find_input(config)
    lines, faults = read_input(path, config.endpoint, None)
    return {
        "stage": "batch",
        "endpoint": config.endpoint,
        "requests": len(lines),
        "models": lines.models,
        "faults": [fault.model_dump() for fault in faults],
        "concurrency": config.concurrency,
    }


def _read_lines(config: BatchConfig, engines: EngineTable) -> tuple[BatchInput, list[LineFault]]:
    # A model whose deployment has ended since an earlier attempt fails its own requests only.
    known = None if engines.control.validated else set(engines.control.known_models)
    return read_input(_find_input(config), config.endpoint, known)


def _find_input(config: BatchConfig) -> Path:
    if config.input is None:
        raise ConfigInvalid("`input` names no file.", "Set it to a file of requests, one JSON object a line.")
    path = Path(config.input)
    if not path.is_file():
        raise DatasetFileNotFound(f"The input file {path} does not exist.", "Set `input` to a file.")
    return path


def _describe(faults: list[LineFault]) -> str:
    first = faults[0]
    place = f"line {first.line}: " if first.line is not None else ""
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"The batch's input file cannot be used: {place}{first.message}{more}"


if __name__ == "__main__":
    run_program(BatchConfig, run, plan)
