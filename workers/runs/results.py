"""Results and errors that a program leaves in its run directory. The program is not trusted."""

import logging
import shutil
import signal
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from app.tables import ModelKind, Run
from serving.engines.child_engine import log_tail
from trainers.configs import Product, TrainingConfig
from trainers.configs.references import HubModel, parse_location
from trainers.evaluation.results import EvaluationResult
from trainers.evaluation.row_index import INDEX, hash_keys
from trainers.modeling.model_files import ADAPTER_CONFIG
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts import guard_options
from workers.runs import recovery
from workers.runs.launch import Launch

# A program that could not even write its error.json has probably filled the disk.
MIN_DISK_BYTES = 1 << 20
# A result is stored in a row of SQL; larger output belongs in a file of its own.
MAX_JSON_BYTES = 8 << 20
ENGINE_LOG = "engine.log"

logger = logging.getLogger(__name__)


class ReportedError(TunesmithError):
    """An error that a program or a deployment has reported, with any of the published codes."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        hint: str | None,
        details: dict[str, Any] | None = None,
        time: str | None = None,
    ) -> None:
        super().__init__(message, hint, details)
        self.code = code
        self.time = time
        """When the program has reported it."""


class DataDiskFull(TunesmithError):
    code = ErrorCode.disk_full


class KilledForMemory(TunesmithError):
    code = ErrorCode.out_of_memory


class ProgramKilled(TunesmithError):
    code = ErrorCode.program_killed


class ProgramWithoutResult(TunesmithError):
    code = ErrorCode.program_without_result


class ProducedModel(BaseModel):
    """The part of a result that describes the model."""

    path: str
    kind: ModelKind
    template_sha256: Annotated[str, Field(max_length=64, pattern="^[0-9a-f]*$")] | None = None
    base_path: str | None = None
    """The base of an adapter, if the run has produced that too."""


class ProducedDataset(BaseModel):
    """The part of a result that describes one dataset."""

    part: str
    path: str


class _ErrorFile(BaseModel):
    """The content of `error.json`, or of a rank's `error-<rank>.json`."""

    code: ErrorCode
    message: str
    hint: str | None = None
    details: dict[str, Any] | None = None
    time: Annotated[str | None, Field(max_length=64)] = None


def read_result(run: Run, run_dir: Path) -> dict[str, Any] | None:
    """Return the program's result, if it is valid and its files are inside the run directory."""
    result = _read_json(run_dir / files.RESULT)
    if result is None:
        return None
    try:
        writes_model = run.stage.stage.product is Product.model
        folders = [ProducedModel.model_validate(result.get("model")).path] if writes_model else []
        paths = [ProducedDataset.model_validate(dataset).path for dataset in result.get("datasets", [])]
        if run.stage.stage.product in (Product.evaluation, Product.comparison):
            EvaluationResult.model_validate(result)
            hash_keys(run_dir / files.EVALUATION / INDEX)
            folders.append(files.EVALUATION)
    except (ValidationError, TypeError, msgspec.MsgspecError, FileNotFoundError) as error:
        logger.warning("result.json is not valid: %s", error, extra={"run_id": run.id})
        return None
    is_inside = all(_is_inside(run_dir / path, run_dir) for path in folders + paths)
    exists = all((run_dir / path).is_dir() for path in folders) and all(
        (run_dir / path).is_file() for path in paths
    )
    return result if is_inside and exists else None


def read_error(run_dir: Path) -> ReportedError | None:
    """Return the error that the program has reported, if there is one; of several ranks, the first cause."""
    errors = [error for path in files.list_errors(run_dir) if (error := _read_error_file(path)) is not None]
    if not errors:
        return None
    error = min(errors, key=lambda error: files.cause_order(error.model_dump()))
    message = error.message
    if error.code is ErrorCode.engine_failed and (log := _find_engine_log(run_dir, error.hint)) is not None:
        # The program only reports that the engine stopped responding.
        message += f"\nThe end of the engine's log:\n{log_tail(log)}"
    return ReportedError(error.code, message, error.hint, error.details, error.time)


def _find_engine_log(run_dir: Path, hint: str | None) -> Path | None:
    """Return the log of the engine that failed: each rank may have one, whose name the hint contains."""
    logs = sorted(path for path in run_dir.glob("engine*.log") if path.is_file() and not path.is_symlink())
    named = [log for log in logs if hint is not None and log.name in hint]
    return next(iter(named or logs), None)


def recomputes_all(run_dir: Path) -> bool:
    """Return whether the program reported that it recomputes the activations of every layer."""
    report = _read_json(run_dir / files.RECOMPUTATION)
    return report is not None and report.get("every_n_layers") == 1


def name_part(run: Run, part: str) -> str:
    """Return the name of a dataset that a run has produced."""
    return f"{run.full_name or run.name}-{part}"


def name_adapter_base(folder: Path, origin: str) -> None:
    """Write the base's location into an adapter's config: the program has only its folder on this host."""
    content = files.read_json(folder / ADAPTER_CONFIG)
    if content is None:
        return
    location = parse_location(origin)
    name, revision = (location.name, location.revision) if isinstance(location, HubModel) else (origin, None)
    files.write_json(
        folder / ADAPTER_CONFIG, content | {"base_model_name_or_path": name, "revision": revision}
    )


def infer_error(
    run: Run, launch: Launch, exit_status: int, reported: TunesmithError | None = None
) -> TunesmithError:
    """Return the most likely error of a program without a result, which at most reported a lost rank."""
    if shutil.disk_usage(launch.run_dir).free < MIN_DISK_BYTES:
        return DataDiskFull(
            f"The disk of the worker's data directory is full: the program of {run.id} could not continue.",
            recovery.DISK_FULL_HINT,
        )
    if _was_killed_for_memory(launch, exit_status):
        return KilledForMemory(
            f"The kernel killed a process of {run.id} because the host had no memory left.",
            "Lower max_length or micro_batch_size; the latter does not change the result, since batch_size "
            "stays the same.",
        )
    if reported is not None:
        return reported
    # A negative status is that of a guard that was killed itself.
    number = -exit_status if exit_status < 0 else exit_status - guard_options.EXIT_SIGNAL_BASE
    if number > 0:
        return ProgramKilled(
            f"The program was killed by signal {number}.",
            "Signal 9 often comes from the kernel's out-of-memory killer: use a smaller micro_batch_size or "
            "max_length.",
        )
    return ProgramWithoutResult(
        f"The program exited with status {exit_status} and left neither a result nor an error.",
        "Read the end of the log.",
    )


def _is_inside(path: Path, run_dir: Path) -> bool:
    """Return whether a file, or a folder with all of its files, is in the run directory, past any links."""
    root = run_dir.resolve()
    return path.resolve().is_relative_to(root) and all(
        found.resolve().is_relative_to(root) for found in path.rglob("*")
    )


def _was_killed_for_memory(launch: Launch, exit_status: int) -> bool:
    # The kernel kills one of several ranks, and their launcher reports a status of its own.
    has_ranks = isinstance(launch.config, TrainingConfig) and launch.config.processes > 1
    is_killed = has_ranks or exit_status == guard_options.EXIT_SIGNAL_BASE + signal.SIGKILL
    return is_killed and recovery.count_oom_kills() > launch.n_oom_kills


def _read_error_file(path: Path) -> _ErrorFile | None:
    content = _read_json(path)
    try:
        return _ErrorFile.model_validate(content) if content is not None else None
    except ValidationError:
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that both databases can store, or return None."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        value = from_json(path.read_bytes(), allow_inf_nan=False)
    except ValueError as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return _replace_nul(value) if isinstance(value, dict) else None


def _replace_nul(value: Any) -> Any:
    """Replace the NUL character, which PostgreSQL's JSON cannot store."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_replace_nul(item) for item in value]
    if isinstance(value, dict):
        return {_replace_nul(name): _replace_nul(item) for name, item in value.items()}
    return value
