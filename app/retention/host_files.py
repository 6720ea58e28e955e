"""Files of this host that no process needs: run directories, copies and views of artifacts, partial uploads.

Each API process and each worker collects in its own data directory. A run directory is kept while its attempt
holds the run; a copy in the cache while a held run or a deployment reads it.
"""

import fcntl
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlmodel import Session, col

from app.deployments.lifecycle import UNFINISHED
from app.jobs.inputs import INPUT_ID
from app.settings import Settings
from app.storage.cache import USED_SUFFIX
from app.storage.database import read_session
from app.storage.inventory import PARTIAL_SUFFIX
from app.storage.opening import get_store
from app.tables import HELD, Checkpoint, Dataset, Deployment, Evaluation, Model, Run

LOCK = "gc.lock"
# Folder in the data directory of the links through which programs and engines see models.
MODEL_VIEWS = "model-views"
# Folder in the data directory of the datasets that stages have rendered; the stages bound its size.
ROW_CACHE = "rows"
ROW_CACHE_META = "meta.json"
# A worker removes the directory of its run itself, within seconds of the run's end.
RUN_DIR_GRACE_SECONDS = 600.0
# Longer than a request reads a copy, or a claimed run takes to name its inputs.
CACHE_GRACE_SECONDS = 3600.0
PARTIAL_GRACE_SECONDS = 86_400.0
SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostFile:
    """A file or folder that can be removed."""

    path: Path
    size_bytes: int


def collect_host_files(settings: Settings, *, dry_run: bool = False) -> list[HostFile]:
    """Remove what no process needs, and return it; nothing while another process collects on this host."""
    with _lock(settings.data_dir) as is_locked:
        if not is_locked:
            return []
        found = [
            *_find_run_dirs(settings.data_dir / "runs"),
            *_find_engine_folders(settings.data_dir / "engines"),
            *_find_partial_files(settings.data_dir),
            *_find_model_views(settings.data_dir / MODEL_VIEWS),
            *_find_cached(settings.data_dir / "cache", settings.max_cache_bytes),
            *_find_rendered(settings.data_dir / ROW_CACHE),
        ]
        if dry_run:
            return found
        for file in found:
            _remove(file.path)
            logger.info("removed %s", file.path, extra={"size_bytes": file.size_bytes})
        return found


def _find_run_dirs(runs: Path) -> Iterator[HostFile]:
    """Yield the directories of attempts that hold no run, and directories of runs without any."""
    folders = [folder for folder in _list(runs) if folder.is_dir()]
    with read_session() as session:
        rows = select(col(Run.id), col(Run.attempt)).where(
            col(Run.id).in_([folder.name for folder in folders]), col(Run.status).in_(HELD)
        )
        held = {f"{run_id}/attempt-{attempt}" for run_id, attempt in session.execute(rows)}
    for folder in folders:
        attempts = _list(folder)
        # A node of a run on several hosts has a suffix.
        names = {path: f"{folder.name}/{path.name.partition('-node-')[0]}" for path in attempts}
        unneeded = [path for path, name in names.items() if name not in held]
        old = [path for path in unneeded if _age(path) > RUN_DIR_GRACE_SECONDS]
        if len(old) == len(attempts) and _age(folder) > RUN_DIR_GRACE_SECONDS:
            old = [folder]
        yield from (HostFile(path, _size(path)) for path in old)


def _find_engine_folders(engines: Path) -> Iterator[HostFile]:
    """Yield the folders of engines for which there is no deployment, left by workers that were killed."""
    folders = [folder for folder in _list(engines) if _age(folder) > PARTIAL_GRACE_SECONDS]
    if not folders:
        return
    with read_session() as session:
        rows = select(col(Deployment.id), col(Deployment.engine_key)).where(
            col(Deployment.status).in_(UNFINISHED)
        )
        # A deployment that shares no engine has a folder of its own id.
        used = tuple(f"{name}-" for row in session.execute(rows) for name in row if name)
    for folder in folders:
        if not folder.name.startswith(used):
            yield HostFile(folder, _size(folder))


def _find_partial_files(data_dir: Path) -> Iterator[HostFile]:
    """Yield uploads and copies that a killed process did not complete."""
    partial = [*_list(data_dir / "uploads")]
    partial += [marker for owner in _list(data_dir / "upload-owners") for marker in _list(owner)]
    partial += [path for path in _list(data_dir / "cache") if path.name.endswith(PARTIAL_SUFFIX)]
    for path in partial:
        if _age(path) > PARTIAL_GRACE_SECONDS:
            yield HostFile(path, _size(path))


def _find_model_views(views: Path) -> Iterator[HostFile]:
    """Yield the views of models that were deleted from a local store, where no key is used twice.

    The views of copies in the cache stay, because a copy may be fetched again at any time.
    """
    store = get_store()
    for view in _list(views) if store.local else ():
        targets = [path.readlink() for path in view.rglob("*") if path.is_symlink()]
        if any(not path.exists() and path.is_relative_to(Path(store.root).resolve()) for path in targets):
            yield HostFile(view, _size(view))


def _find_cached(cache: Path, max_bytes: int) -> Iterator[HostFile]:
    """Yield the copies that were not used for longest, until the others are within the limit."""
    if not max_bytes:
        return
    copies = [path for path in _list(cache) if SHA256.fullmatch(path.name)]
    sizes = {path: _size(path) for path in copies}
    surplus = sum(sizes.values()) - max_bytes
    if surplus <= 0:
        return
    with read_session() as session:
        in_use = _list_hashes_in_use(session)
    for path in sorted(copies, key=_last_use):
        if surplus <= 0:
            return
        if path.name not in in_use and time.time() - _last_use(path) > CACHE_GRACE_SECONDS:
            surplus -= sizes[path]
            yield HostFile(path, sizes[path])


def _find_rendered(folder: Path) -> Iterator[HostFile]:
    """Yield the rendered rows of datasets that were deleted, and what a killed process did not complete."""
    partial = [path for path in _list(folder) if path.name.startswith(".")]
    yield from (HostFile(path, _size(path)) for path in partial if _age(path) > PARTIAL_GRACE_SECONDS)
    datasets = {
        entry: set(json.loads((entry / ROW_CACHE_META).read_text())["datasets"])
        for entry in _list(folder)
        if SHA256.fullmatch(entry.name) and not _is_locked(entry / ROW_CACHE_META)
    }
    if not datasets:
        return
    with read_session() as session:
        named = col(Dataset.sha256).in_(set().union(*datasets.values()))
        live = set(
            session.scalars(select(col(Dataset.sha256)).where(named, col(Dataset.deleted_at).is_(None)))
        )
    yield from (HostFile(entry, _size(entry)) for entry, hashes in datasets.items() if not hashes <= live)


def _is_locked(path: Path) -> bool:
    """Return whether a process holds a lock on a file, or the file is gone."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _list_hashes_in_use(session: Session) -> set[str]:
    """Return the hashes of the artifacts that held runs and deployments read, with the bases of adapters."""
    held = session.scalars(select(Run).where(col(Run.status).in_(HELD))).all()
    jobs = session.scalars(select(Run).where(col(Run.job_id).in_({run.job_id for run in held}))).all()
    deployments = session.scalars(select(Deployment).where(col(Deployment.status).in_(UNFINISHED))).all()
    text = json.dumps([[run.config, run.result, run.model_id] for run in jobs])
    text += json.dumps([[deployment.base, deployment.model_id] for deployment in deployments])
    ids, new = set[str](), set(INPUT_ID.findall(text))
    while new:
        ids |= new
        rows = session.execute(
            select(col(Model.base), col(Model.parent_id), col(Model.dataset_id)).where(col(Model.id).in_(new))
        )
        new = {name for row in rows for name in row if name} - ids
    hashes = set(
        session.scalars(
            select(col(Checkpoint.sha256)).where(col(Checkpoint.run_id).in_([r.id for r in held]))
        )
    )
    for table in (Model, Dataset, Evaluation):
        hashes |= set(session.scalars(select(col(table.sha256)).where(col(table.id).in_(ids))))
    return hashes


@contextmanager
def _lock(data_dir: Path) -> Iterator[bool]:
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _age(path: Path) -> float:
    """Return the seconds since the newest change of a file, or of a folder and what is directly in it."""
    changed_at = 0.0
    for each in [path, *(_list(path) if path.is_dir() else [])]:
        try:
            changed_at = max(changed_at, each.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return time.time() - changed_at


def _last_use(copy: Path) -> float:
    for path in (copy.with_name(f"{copy.name}{USED_SUFFIX}"), copy):
        try:
            return path.lstat().st_mtime
        except FileNotFoundError:
            continue
    return time.time()


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        total += 0 if file.is_dir() else status.st_size
    return total


def _remove(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that a reader never finds half of it."""
    if path.is_dir() and not path.is_symlink():
        removed = path.with_name(f"{path.name}.removed{PARTIAL_SUFFIX}")
        try:
            path.rename(removed)
        except OSError:
            removed = path
        shutil.rmtree(removed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    path.with_name(f"{path.name}{USED_SUFFIX}").unlink(missing_ok=True)
