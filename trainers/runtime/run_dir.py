"""The run directory: all that passes between a program and the world.

`config.json`, `log.txt`, `metrics.jsonl`, `checkpoints.jsonl`, `checkpoints/step-00000050/`, `model/`,
`error.json` after a failure, and `result.json`, which is written last: if it exists, the run succeeded.
The standard library is enough here, because workers import this module too.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CONFIG = "config.json"
LOG = "log.txt"
EVENTS = "metrics.jsonl"
CHECKPOINT_LINES = "checkpoints.jsonl"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
MODEL = "model"
RESULT = "result.json"
ERROR = "error.json"
SCRATCH = "scratch"


@dataclass(frozen=True)
class CheckpointRecord:
    """One line of `checkpoints.jsonl`; `path` is relative to the run directory."""

    step: int
    path: str
    size_bytes: int
    time: str


def utc_now() -> str:
    """The time as ISO 8601 in UTC, as every file of a run directory writes it."""
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
    """Read a file of `write_json`; None when it is not there."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Declare the run a success; nothing may be written after this."""
    write_json(run_dir / RESULT, result)


def write_error(run_dir: Path, code: str, message: str, hint: str) -> None:
    """Say why the run failed."""
    write_json(run_dir / ERROR, {"code": code, "message": message, "hint": hint})


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The result of a run that succeeded, else None."""
    return read_json(run_dir / RESULT)


def read_error(run_dir: Path) -> dict[str, Any] | None:
    """The `code`, `message` and `hint` of a run that failed, else None."""
    return read_json(run_dir / ERROR)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line, as `append_lines` does."""
    append_lines(path, [value])


def append_lines(path: Path, values: list[dict[str, Any]]) -> None:
    """Append JSON objects as lines and fsync; the torn line of a killed writer is closed first."""
    start = b"\n" if has_partial_last_line(path) else b""
    with path.open("ab") as file:
        file.write(start + "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, without lines that a killed writer left torn."""
    if not path.exists():
        return []
    values = [_parsed(line) for line in path.read_bytes().splitlines()]
    return [value for value in values if value is not None]


def has_partial_last_line(path: Path) -> bool:
    """Whether the file's last line lacks its newline."""
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


def publish_checkpoint(run_dir: Path, step: int, folder: Path) -> CheckpointRecord:
    """Turn a written folder of the run directory into the checkpoint of `step`, which a reader sees whole.

    The order makes a crash at any moment harmless: files, manifest, rename, and the line only at the end.
    """
    files = [_described(path, folder) for path in _files(folder)]
    write_json(folder / MANIFEST, {"step": step, "files": files})
    _sync_tree(folder)
    target = run_dir / CHECKPOINTS / f"step-{step:08d}"
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    sync_folder(target.parent)
    size_bytes = sum(file["size_bytes"] for file in files)
    checkpoint = CheckpointRecord(step, str(target.relative_to(run_dir)), size_bytes, utc_now())
    append_line(run_dir / CHECKPOINT_LINES, asdict(checkpoint))
    return checkpoint


def checkpoints(run_dir: Path) -> list[CheckpointRecord]:
    """All checkpoints ever published, oldest first; pruned ones are among them."""
    lines = read_lines(run_dir / CHECKPOINT_LINES)
    fields = CheckpointRecord.__dataclass_fields__.keys()
    return [
        CheckpointRecord(**{name: line[name] for name in fields}) for line in lines if fields <= line.keys()
    ]


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """The newest published checkpoint whose files all match their manifest, or None."""
    for checkpoint in reversed(checkpoints(run_dir)):
        folder = run_dir / checkpoint.path
        if _is_complete(folder, checkpoint.step):
            return folder
    return None


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest published checkpoints, and folders that no line speaks of."""
    newest = list(dict.fromkeys(checkpoint.path for checkpoint in reversed(checkpoints(run_dir))))
    kept = [path for path in newest if (run_dir / path).is_dir()][:keep]
    for folder in (run_dir / CHECKPOINTS).glob("step-*"):
        if str(folder.relative_to(run_dir)) not in kept:
            shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Make renames within the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _described(path: Path, folder: Path) -> dict[str, Any]:
    return {
        "path": path.relative_to(folder).as_posix(),
        "size_bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_complete(folder: Path, step: int) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["step"] == step) and all(_matches(folder, file) for file in manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _matches(folder: Path, file: dict[str, Any]) -> bool:
    path = folder / file["path"]
    return (path.stat().st_size, _sha256(path)) == (file["size_bytes"], file["sha256"])
