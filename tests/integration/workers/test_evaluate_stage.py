"""The engines of an evaluation: one for each base, one after another, and none for what is complete."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from app.storage.database import read_session, transaction
from app.tables import Checkpoint, Dataset, Deployment, DeploymentStatus, Job, Run, RunStatus
from tests.conftest import ROOT
from tests.counting_engine import CountingEngine, read_ledger
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import EngineKind, Queue, StageKind, parse_stage
from trainers.configs.base import AdaptedModel
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.checkpoints import publish_unsaved
from trainers.runtime import run_dir as files
from trainers.runtime.verified_files import hash_file
from workers.hosts.worker import WorkerContext
from workers.runs.run_engine import group_models

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ROWS = 12


@pytest.fixture
def ledger(worker: WorkerContext, tmp_path: Path) -> Path:
    """Let the worker start real programs and engines that count requests; return their file."""
    worker.settings.trainer_python = ""
    worker.stages.append(StageKind.evaluate)
    path = tmp_path / "ledger.jsonl"
    script = str(ROOT / "tests" / "counting_engine.py")
    worker.settings.engine_commands = {EngineKind.hf: [sys.executable, script, "--ledger", str(path)]}
    return path


def submit(worker: WorkerContext, **values: Any) -> str:
    """Queue an evaluation of two bases, and return the run's id."""
    models = worker.settings.data_dir / "models"
    for name in ("base", "other"):
        (models / name).mkdir(exist_ok=True)
        (models / name / "config.json").write_text('{"model_type": "llama"}')
    content = "".join(
        json.dumps({"question": f"Say {n}.", "answer": f"#### {n}"}) + "\n" for n in range(ROWS)
    ).encode()
    file = worker.settings.data_dir / "artifacts" / "rows"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with transaction() as session:
        job = Job(name="job")
        dataset = Dataset(
            name="rows", sha256=hash_file(file), artifact="rows", size_bytes=len(content), row_count=ROWS
        )
        session.add_all([job, dataset])
        session.flush()
        config = {"stage": "evaluate", "name": "score", "dataset": dataset.id, "max_new_tokens": 8}
        config |= {"model": str(models / "base"), "baseline": str(models / "other"), **values}
        run = Run(
            job_id=job.id, position=0, name="score", stage=StageKind.evaluate, queue=Queue.cpu, config=config
        )
        session.add(run)
    return run.id


@on_sqlite
def test_models_with_different_bases_are_served_one_after_another(
    worker: WorkerContext, ledger: Path
) -> None:
    run_id = submit(worker)
    assert execute_next(worker)
    run = row(run_id)
    assert run.status is RunStatus.succeeded and run.result is not None, run.error
    assert len(read_ledger(ledger)) == 2 * ROWS
    assert [model["model"] for model in run.result["models"]] == ["models/base", "models/other"]
    assert run.result["models"][0]["provenance"]["model"].keys() == {"base", "base_sha256"}
    assert (run.step, run.total_steps) == (2 * ROWS, 2 * ROWS)


@on_sqlite
def test_another_host_asks_only_for_what_is_missing(worker: WorkerContext, ledger: Path) -> None:
    run_id = submit(worker, seed=2**32 - 1)
    # The second engine cannot start: the responses of the first are stored before the attempt ends.
    command = worker.settings.engine_commands[EngineKind.hf]
    other = str(worker.settings.data_dir / "models" / "other")
    failing = f"import runpy, sys; assert {other!r} not in sys.argv; sys.argv[:1] = []; runpy.run_path("
    worker.settings.engine_commands[EngineKind.hf] = [
        sys.executable, "-c", f"{failing}{command[1]!r}, run_name='__main__')", command[1], *command[2:],
    ]  # fmt: skip
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.queued
    assert len(read_ledger(ledger)) == ROWS
    with read_session() as session:
        stored = select(Checkpoint).where(col(Checkpoint.run_id) == run_id)
        assert session.exec(stored).one().step >= ROWS
    worker.settings.engine_commands[EngineKind.hf] = command
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.succeeded, row(run_id).error
    assert len(read_ledger(ledger)) == 2 * ROWS


@on_sqlite
def test_an_early_stop_also_ends_the_rows_of_a_model_that_is_served_later(
    worker: WorkerContext, ledger: Path
) -> None:
    run_id = submit(worker, early_stop={"against": 0.1, "rows_per_look": 3})
    assert execute_next(worker)
    run = row(run_id)
    assert run.status is RunStatus.succeeded and run.result is not None, run.error
    assert run.result["details"]["early_stop"]["outcome"] == "met"
    assert run.result["n"] == 9 < ROWS
    assert len(read_ledger(ledger)) == 2 * 9
    assert (run.step, run.total_steps) == (18, 18)


@on_sqlite
def test_a_deployment_stays_awake_while_it_is_evaluated(
    worker: WorkerContext, ledger: Path, tmp_path: Path
) -> None:
    with CountingEngine(tmp_path / "deployed.jsonl") as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        deployment = Deployment(
            name="chat",
            base="org/model",
            engine=EngineKind.hf,
            queue=Queue.cpu,
            status=DeploymentStatus.ready,
            address=engine.url,
        )
        with transaction() as session:
            session.add(deployment)
        run_id = submit(worker, model={"deployment": "chat"}, baseline={"deployment": "chat"})
        assert execute_next(worker)
        engine.shutdown()
    assert row(run_id).status is RunStatus.succeeded, row(run_id).error
    with read_session() as session:
        assert session.get_one(Deployment, deployment.id).last_used_at is not None


def test_adapters_share_the_engine_of_their_base_unless_it_has_one_template(tmp_path: Path) -> None:
    for name, template in (("base", "a"), ("one", "a"), ("two", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chat_template.jinja").write_text(template)
    base = str(tmp_path / "base")
    models: dict[str, Any] = {"model": base} | {
        name: AdaptedModel(base=base, adapter=str(tmp_path / name)) for name in ("one", "two")
    }
    values = {"stage": "evaluate", "model": base, "dataset": "rows"}
    shared = group_models(_parse(values | {"engine": "hf"}), models)
    assert [group.names for group in shared] == [["model", "one", "two"]]
    single = group_models(_parse(values | {"engine": "vllm"}), models)
    assert [group.names for group in single] == [["model", "one"], ["two"]]


def _parse(values: dict[str, Any]) -> EvaluateConfig:
    config = parse_stage(values)
    assert isinstance(config, EvaluateConfig)
    return config


@pytest.mark.parametrize("linked", ["responses.jsonl", "scratch", "checkpoints"])
def test_a_link_that_a_program_has_left_is_not_followed(tmp_path: Path, linked: str) -> None:
    secret = tmp_path / "secret"
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "responses.jsonl").write_text("{}\n")
    if linked == "responses.jsonl":
        secret.write_text("secret\n")
        (run_dir / linked).unlink()
    else:
        secret.mkdir()
    (run_dir / linked).symlink_to(secret)
    publish_unsaved(run_dir / "responses.jsonl")
    assert files.checkpoints(run_dir) == []
    assert secret.is_file() or list(secret.iterdir()) == []
