"""The run directory: every file that a program shares with the worker that started it.

`config.json`, `log.txt`, `events.jsonl`, `checkpoints.jsonl`, `checkpoints/step-00000050/`, `model/`,
`error.json` after a failure, and `result.json`. The result is written last: if it exists, the run succeeded.
With several ranks, each that fails writes an `error-<rank>.json` instead.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from trainers.runtime.verified_files import VerifiedFiles, hash_file

CONFIG = "config.json"
LATER_STAGES = "later_stages.json"
# Which activations a training program recomputes, for the worker that gives it less memory after a failure.
RECOMPUTATION = "recomputation.json"
LOG = "log.txt"
EVENTS = "events.jsonl"
CHECKPOINT_LINES = "checkpoints.jsonl"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
MODEL = "model"
# The base of an adapter, where it is published too.
DEQUANTIZED_BASE = "dequantized_base"
EVALUATION = "evaluation"
RESULT = "result.json"
ERROR = "error.json"
SCRATCH = "scratch"
# Completions of a model in training, a line each.
SAMPLES = "samples.jsonl"
# The tokens of each response of a served model, a line each; a name with a dot is not published.
MODEL_USE = ".model_use"

MAX_HASHING_THREADS = 8
# A process that asks for the last checkpoint several times reads its files once.
_VERIFIED = VerifiedFiles(None)

TFile = TypeVar("TFile")
TResult = TypeVar("TResult")


class CheckpointRecord(BaseModel):
    """One line of `checkpoints.jsonl`; `path` is relative to the run directory."""

    model_config = ConfigDict(frozen=True)

    step: Annotated[int, Field(ge=0, lt=2**31)]
    path: str
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Ties the files to this line: a folder with another manifest is not this run's checkpoint."""
    time: str
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long training waited for it."""


def utc_now() -> str:
    """Return the time in UTC as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the whole file or none: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; return None if the file does not exist."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Mark the run as succeeded; nothing may be written after this."""
    write_json(run_dir / RESULT, result)


def write_error(
    run_dir: Path, error: TunesmithError, rank: int | None = None, node: int | None = None
) -> None:
    """Write the error that ended the run, or one of its ranks; `node` is the rank of its host, if several."""
    name = ERROR if rank is None else f"error-{rank}.json"
    host = {} if node is None else {"node": node}
    write_json(run_dir / name, {**error.as_dict(), **host, "time": utc_now()})


def list_errors(run_dir: Path) -> list[Path]:
    """Return the files of errors: that of the run, and those of its ranks."""
    return [*run_dir.glob(ERROR), *run_dir.glob("error-*.json")]


def cause_order(error: Mapping[str, Any]) -> tuple[bool, str]:
    """Return the key by which the cause precedes its consequences: a lost rank is last, then by time."""
    return error["code"] == ErrorCode.rank_lost, str(error.get("time") or "")


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Return the result of a run that succeeded, else None."""
    return read_json(run_dir / RESULT)


def read_error(run_dir: Path) -> dict[str, Any] | None:
    """Return the `code`, `message`, `hint` and `time` of the first cause if the run failed, else None."""
    errors = [error for path in list_errors(run_dir) if (error := read_json(path)) is not None]
    return min(errors, key=cause_order, default=None)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line, as `append_lines` does."""
    append_lines(path, [value])


def append_lines(path: Path, values: list[dict[str, Any]]) -> None:
    """Append JSON objects as lines and fsync; a partial line of a killed writer is terminated first."""
    start = b"\n" if has_partial_last_line(path) else b""
    with path.open("ab") as file:
        file.write(start + "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines, without the partial lines of a killed writer."""
    if not path.exists():
        return []
    values = [_parse_line(line) for line in path.read_bytes().splitlines()]
    return [value for value in values if value is not None]


def has_partial_last_line(path: Path) -> bool:
    """Return whether the last line of the file lacks its newline."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def publish_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder, fsync its files and rename it to `target`, which is replaced if it exists."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        _sync_tree(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)


def publish_checkpoint(
    run_dir: Path, step: int, folder: Path, started_at: float | None = None
) -> CheckpointRecord:
    """Publish a written folder of the run directory as the checkpoint of `step`.

    `started_at` is the time on the monotonic clock when its first file was begun.

    The order makes a crash at any moment harmless: files, manifest, rename, and the line in
    `checkpoints.jsonl` last.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [
        {"path": path.relative_to(folder).as_posix(), "size_bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(paths, _map_files(hash_file, paths), strict=True)
    ]
    write_json(folder / MANIFEST, {"step": step, "files": files})
    _sync_tree(folder)
    target = run_dir / CHECKPOINTS / f"step-{step:08d}"
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    sync_folder(target.parent)
    record = CheckpointRecord(
        step=step,
        path=str(target.relative_to(run_dir)),
        size_bytes=sum(file["size_bytes"] for file in files),
        manifest_sha256=hash_file(target / MANIFEST),
        time=utc_now(),
        seconds=0.0 if started_at is None else time.monotonic() - started_at,
    )
    append_line(run_dir / CHECKPOINT_LINES, record.model_dump())
    return record


def checkpoints(run_dir: Path) -> list[CheckpointRecord]:
    """Return all checkpoints ever published, oldest first, including pruned ones."""
    records = []
    for line in read_lines(run_dir / CHECKPOINT_LINES):
        try:
            records.append(CheckpointRecord.model_validate(line))
        except ValidationError:
            continue
    return records


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint whose manifest this run has written and whose files match it, or None."""
    for checkpoint in reversed(checkpoints(run_dir)):
        if _is_complete(run_dir, checkpoint):
            return run_dir / checkpoint.path
    return None


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Delete all but the `keep` newest published checkpoints, and folders that were never published."""
    newest = list(dict.fromkeys(checkpoint.path for checkpoint in reversed(checkpoints(run_dir))))
    kept = [path for path in newest if (run_dir / path).is_dir()][:keep]
    for folder in (run_dir / CHECKPOINTS).glob("step-*"):
        if str(folder.relative_to(run_dir)) not in kept:
            shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Make renames within the folder durable."""
    _fsync(folder)


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_complete(run_dir: Path, checkpoint: CheckpointRecord) -> bool:
    """Return whether the folder has the files of the manifest, each as it was written, and no other."""
    folder = run_dir / checkpoint.path
    if folder.parent != run_dir / CHECKPOINTS or folder.is_symlink():
        return False
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        return (
            hashlib.sha256(content).hexdigest() == checkpoint.manifest_sha256
            and bool(manifest["step"] == checkpoint.step)
            and found == {MANIFEST, *(file["path"] for file in manifest["files"])}
            and all(_map_files(partial(_matches, folder), manifest["files"]))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _matches(folder: Path, file: dict[str, Any]) -> bool:
    path = folder / file["path"]
    return bool(path.stat().st_size == file["size_bytes"]) and _VERIFIED.verify(path, file["sha256"])


def _map_files(function: Callable[[TFile], TResult], values: Sequence[TFile]) -> list[TResult]:
    """Call a function that reads a file for each value, in threads: hashing releases the interpreter."""
    with ThreadPoolExecutor(max(1, min(len(values), MAX_HASHING_THREADS))) as pool:
        return list(pool.map(function, values))
