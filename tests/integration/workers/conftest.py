"""A worker in this process, whose programs are written by the tests."""

import hashlib
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Dataset, Job, Run
from tests.integration.app.conftest import database_url, postgres, settings, sqlite
from trainers.configs import Queue, StageKind
from workers.hosts.worker import WorkerContext, register_worker
from workers.runs.claim import claim_next
from workers.runs.execute import execute

__all__ = ["database_url", "postgres", "settings", "sqlite"]

# The beginning of every program: where it writes, and functions that write.
PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
run_dir = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
attempt = int(run_dir.name.split("-")[1])
NOW = "2026-01-01T00:00:00+00:00"

def write(name, text, mode="w"):
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    with (run_dir / name).open(mode) as file:
        file.write(text)

def checkpoint(step, size=10, seconds=0):
    files = [{{"path": "weights", "size_bytes": size, "sha256": ""}}]
    write(f"checkpoints/step-{{step:08d}}/weights", "x" * size)
    write(f"checkpoints/step-{{step:08d}}/manifest.json", json.dumps({{"step": step, "files": files}}))
    line = {{"step": step, "path": f"checkpoints/step-{{step:08d}}", "size_bytes": size, "time": NOW}}
    line |= {{"manifest_sha256": "0" * 64, "seconds": seconds}}
    write("checkpoints.jsonl", json.dumps(line) + "\\n", "a")

def wait_for(name):
    while not (run_dir / name).exists():
        time.sleep(0.02)

def succeed(**result):
    write("model/weights", "w")
    model = {{"path": "model", "kind": "adapter", "base": "", "template_sha256": "0" * 64}}
    write("result.json", json.dumps({{"stage": "sft", "model": model, "metrics": {{}}, **result}}))

"""


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerContext]:
    """Yield a worker with its heartbeat, but without a broker."""
    # A busy machine stops this process for seconds, which must not cost a run its lease.
    settings.lease_seconds, settings.heartbeat_seconds = 60, 0.5
    settings.trainer_python = str(settings.data_dir / "program")
    base = settings.data_dir / "models" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text('{"model_type": "llama"}')
    settings.model_roots = [settings.data_dir / "models"]
    worker = register_worker(settings, [Queue.cpu, Queue.cuda], "here")
    worker.leases.start()
    yield worker
    worker.leases.stop()


@pytest.fixture
def submit(worker: WorkerContext) -> Callable[..., str]:
    """Queue an SFT run whose program has this body, and return the id of the run."""
    program = Path(worker.settings.trainer_python)
    artifacts = worker.settings.data_dir / "artifacts"
    artifacts.mkdir(exist_ok=True)

    def queue(body: str, **values: object) -> str:
        program.write_text(PROGRAM + body)
        program.chmod(0o755)
        rows = secrets.token_bytes(8)
        sha256 = hashlib.sha256(rows).hexdigest()
        (artifacts / sha256).write_bytes(rows)
        with transaction() as session:
            job = Job(name="job")
            dataset = Dataset(name="rows", sha256=sha256, artifact=sha256, size_bytes=8, row_count=1)
            session.add_all([job, dataset])
            session.flush()
            base = str(worker.settings.data_dir / "models" / "base")
            config = {"stage": "sft", "base": base, "dataset": dataset.id}
            fields = {"stage": StageKind.sft, "queue": Queue.cpu, "config": config, **values}
            run = Run(job_id=job.id, position=0, name="run", **fields)  # type: ignore[arg-type]
            session.add(run)
        return run.id

    return queue


def row(run_id: str) -> Run:
    """Read the run from the database."""
    with read_session() as session:
        return session.get_one(Run, run_id)


def execute_next(worker: WorkerContext) -> bool:
    """Claim and execute the first run that the worker can take; return False if there is none."""
    claimed = claim_next(worker)
    if claimed is not None:
        execute(worker, claimed)
    return claimed is not None
