"""Artifacts that are published with rows, and collections of them: what the tests of retention share."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlmodel import select

from app.retention import collector
from app.retention.collector import collect, hold_storage_lease
from app.retention.report import CollectionReport, Removal
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.storage.inventory import list_artifacts
from app.storage.opening import get_store
from app.storage.verify import verify_store
from app.tables import (
    Checkpoint,
    Event,
    EventType,
    Model,
    ModelKind,
    Run,
    RunStatus,
)

Make = Callable[..., list[Run]]
LONG_AGO = datetime.now(UTC) - timedelta(days=200)
FILES = {
    "adapter_model.safetensors": 700,
    "adapter_config.json": 10,
    "optimizer.pt": 1400,
    "rng_state.pth": 20,
    "scheduler.pt": 20,
    "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt": 60,
    "training/state.safetensors": 60,
    "trainer_state.json": 10,
    "manifest.json": 5,
}
STATE_BYTES = 1400 + 20 + 20 + 60 + 60


def run_collection(settings: Settings, **options: Any) -> tuple[CollectionReport, list[Removal]]:
    removals: list[Removal] = []
    with hold_storage_lease() as lease:
        assert lease is not None
        report = collect(settings, options.pop("store", get_store()), lease, removals.append, **options)
    return report, removals


def publish(folder: Path, key: str, files: dict[str, int] | None = None) -> Any:
    for name, size in (files or FILES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    return get_store().publish_folder(folder, key)


def add_checkpoint(tmp_path: Path, run: Run, step: int) -> Checkpoint:
    published = publish(tmp_path / "written" / f"{run.id}-{step}", f"checkpoints/{run.id}/1-{step:08d}")
    checkpoint = Checkpoint(
        run_id=run.id,
        attempt=1,
        step=step,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
    )
    add(checkpoint)
    return checkpoint


def add_model(tmp_path: Path, run: Run) -> Model:
    published = publish(
        tmp_path / "model" / run.id, f"models/model_{run.id}", {"adapter_model.safetensors": 700}
    )
    model = Model(
        id=f"model_{run.id}",
        name="sft",
        kind=ModelKind.adapter,
        base="org/base",
        run_id=run.id,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
    )
    add(model)
    return model


def add(row: Any) -> Any:
    with transaction() as session:
        session.add(row)
    return row


def add_log(tmp_path: Path, run: Run, size: int = 100) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * size)
    get_store().publish_file(path, f"runs/{run.id}/1/log.txt")
    set_values(Run, run.id, log_artifact=f"runs/{run.id}/1/log.txt")


def set_values(table: type[Any], row_id: str, **values: Any) -> None:
    with transaction() as session:
        row = session.get_one(table, row_id)
        for name, value in values.items():
            setattr(row, name, value)


def make_old(settings: Settings) -> None:
    """Give everything in the store a time before every grace period."""
    for folder, _, names in os.walk(get_store().root):
        for name in names:
            os.utime(Path(folder, name), (LONG_AGO.timestamp(),) * 2)


def list_faults() -> list[str]:
    return [f"{fault.kind} {fault.key}" for fault in verify_store(get_store(), lambda progress: None)]


def stored_keys() -> set[str]:
    return {artifact.key for artifact in list_artifacts(get_store())} - {collector.INSTALLATION_KEY}


def rows(table: type[Any]) -> list[Any]:
    """Return the rows of a table by their primary keys: PostgreSQL promises no order without one."""
    with read_session() as session:
        return list(session.exec(select(table).order_by(*table.__table__.primary_key)).all())


def finish(make_job: Make, status: RunStatus = RunStatus.succeeded, **values: Any) -> Run:
    (run,) = make_job(status, attempt=1, **{"finished_at": datetime.now(UTC), **values})
    return run


def add_events(run: Run, n_metrics: int) -> None:
    losses = {7: 9.0, 13: -3.0}
    with transaction() as session:
        values: list[tuple[EventType, dict[str, Any]]] = [
            (EventType.status, {"status": "queued"}),
            (EventType.log, {"lines": ["a"]}),
            (EventType.samples, {"samples": []}),
        ]
        values += [(EventType.metrics, {"loss": losses.get(n, 1 / (n + 1))}) for n in range(n_metrics)]
        values += [(EventType.progress, {"step": 1}), (EventType.warning, {"code": "c", "message": "m"})]
        values += [(EventType.metrics, {"validation_loss": 0.5}), (EventType.status, {"status": "succeeded"})]
        session.add_all(
            Event(run_id=run.id, seq=seq, attempt=1, type=kind, step=seq, data=data)
            for seq, (kind, data) in enumerate(values, 1)
        )
