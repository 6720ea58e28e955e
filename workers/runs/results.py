"""What a program left in its run directory: a result, an error or neither. The program is not trusted."""

import logging
import shutil
import signal
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from app.tables import ModelKind, Run
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from workers.hosts import guarded_process
from workers.runs import recovery
from workers.runs.launch import Launch

# A program that could not even write its error.json has probably filled the disk.
DISK_FULL_BELOW_BYTES = 1 << 20
# A result is a row of SQL; what is larger belongs into a file of its own.
MAX_JSON_BYTES = 8 << 20

logger = logging.getLogger(__name__)


class ProducedModel(BaseModel):
    """What a program says of the model that it has made."""

    path: str
    kind: ModelKind
    template_sha256: Annotated[str, Field(max_length=64, pattern="^[0-9a-f]*$")] | None = None


class _MadeDataset(BaseModel):
    """What a program says of a dataset that it has made."""

    part: str
    path: str


class _Error(BaseModel):
    """What a program says of its failure."""

    code: ErrorCode
    message: str
    hint: str = ""


def read_result(run: Run, run_dir: Path) -> dict[str, Any] | None:
    """The program's result, if it is one that can be stored and names only what is there."""
    result = _read(run_dir / files.RESULT)
    if result is None:
        return None
    try:
        folders = [ProducedModel.model_validate(result.get("model")).path] if run.stage.produces_model else []
        paths = [_MadeDataset.model_validate(made).path for made in result.get("datasets", [])]
    except (ValidationError, TypeError) as error:
        logger.warning("the result is none: %s", error, extra={"run_id": run.id})
        return None
    inside = all((run_dir / path).resolve().is_relative_to(run_dir.resolve()) for path in folders + paths)
    there = all((run_dir / path).is_dir() for path in folders) and all(
        (run_dir / path).is_file() for path in paths
    )
    return result if inside and there else None


def read_error(run_dir: Path) -> dict[str, Any] | None:
    """The program's own account of its failure, if it left one."""
    told = _read(run_dir / files.ERROR)
    try:
        return _Error.model_validate(told).model_dump() if told is not None else None
    except ValidationError:
        return None


def infer_error(run: Run, launch: Launch, exit_status: int) -> dict[str, Any]:
    """The error of a program that left neither a result nor an account of its own."""
    if shutil.disk_usage(launch.run_dir).free < DISK_FULL_BELOW_BYTES:
        return recovery.disk_full_error(
            f"The disk with the worker's data directory is full: the program of {run.id} could not go on."
        )
    if (
        exit_status == guarded_process.EXIT_SIGNAL_BASE + signal.SIGKILL
        and recovery.count_oom_kills() > launch.kernel_kills
    ):
        return recovery.oom_kill_error(run)
    if exit_status > guarded_process.EXIT_SIGNAL_BASE:
        message = f"The program was killed by signal {exit_status - guarded_process.EXIT_SIGNAL_BASE}."
        hint = "A 9 is often the kernel's out-of-memory killer: use a smaller micro_batch_size or max_length."
        return {"code": ErrorCode.program_killed, "message": message, "hint": hint}
    message = f"The program ended with status {exit_status} and left neither a result nor an error."
    return {
        "code": ErrorCode.program_without_result,
        "message": message,
        "hint": "Read the end of the log.",
    }


def _read(path: Path) -> dict[str, Any] | None:
    """A file of JSON that both databases can hold, else None."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        value = from_json(path.read_bytes(), allow_inf_nan=False)
    except ValueError as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return _without_nul(value) if isinstance(value, dict) else None


def _without_nul(value: Any) -> Any:
    """PostgreSQL's JSON holds no NUL."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(item) for name, item in value.items()}
    return value
