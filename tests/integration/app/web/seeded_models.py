"""Models with files and a lineage, and many models, for tests and screenshots of the pages."""

import secrets
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from app.storage.database import insert_rows, transaction
from app.storage.opening import get_store
from app.tables import (
    Dataset,
    Deployment,
    DeploymentStatus,
    Evaluation,
    Job,
    Model,
    ModelKind,
    Run,
    RunStatus,
)
from app.tables.base import new_row, utc_now
from trainers.configs import EngineKind, Queue, StageKind, parse_stage
from trainers.data.formats import RowFormat

SFT = {"stage": "sft", "base": "Qwen/Qwen2.5-0.5B-Instruct", "dataset": "dataset_of_news", "epochs": 2}


class Lineage(NamedTuple):
    """A model and what it is connected with."""

    base: Model
    model: Model
    child: Model
    run: Run
    deployment: Deployment
    evaluation: Evaluation


def add_lineage(folder: Path, name: str = "ko-en-news-sft") -> Lineage:
    """Insert an adapter that was trained from a model, evaluated, deployed and merged."""
    base = _publish(folder, "starter", ModelKind.base, "Qwen/Qwen2.5-0.5B-Instruct")
    sha256 = secrets.token_hex(32)
    dataset = Dataset(
        name="ko-en-news",
        format=RowFormat.messages,
        sha256=sha256,
        artifact=f"datasets/{sha256}",
        size_bytes=7,
        row_count=48_211,
    )
    job = Job(name="ko-en-news", spec={"name": "ko-en-news", "stages": [SFT]})
    run = new_row(
        Run,
        job_id=job.id,
        position=0,
        name="sft",
        full_name=name,
        stage=StageKind.sft,
        queue=Queue.cuda,
        config=parse_stage(SFT).model_dump(mode="json"),
        status=RunStatus.succeeded,
        created_at=job.created_at,
    )
    model = _publish(folder, name, ModelKind.adapter, base.id)
    model.parent_id, model.dataset_id, model.run_id = base.id, dataset.id, run.id
    child = _publish(folder, f"{name}-merged", ModelKind.base, model.base)
    child.parent_id = model.id
    deployment = Deployment(
        name="ko-en", base=base.id, model_id=model.id, engine=EngineKind.hf, queue=Queue.cpu
    )
    deployment.status = DeploymentStatus.stopped
    evaluation = Evaluation(
        job_id=job.id,
        run_id=run.id,
        role="model",
        model=name,
        model_id=model.id,
        metric="chrf",
        n=500,
        rows_sha256=secrets.token_hex(32),
        artifact="evaluations/none",
        sha256="0" * 64,
        size_bytes=1,
        scores=[{"metric": "chrf", "value": 61.42, "interval_95": None, "n": 500, "signature": "chrf"}],
        provenance={},
    )
    with transaction() as session:
        for rows in ([base, dataset, job], [run], [model], [child, deployment, evaluation]):
            session.add_all(rows)
            session.flush()
    return Lineage(base, model, child, run, deployment, evaluation)


def add_many_models(count: int) -> None:
    """Insert models without files."""
    at = utc_now() - timedelta(days=40)
    rows = [
        new_row(
            Model,
            name=f"nightly-{number:04d}",
            kind=ModelKind.adapter,
            base="Qwen/Qwen2.5-0.5B-Instruct",
            artifact=f"models/{number}",
            sha256=secrets.token_hex(32),
            size_bytes=36 * 2**20,
            created_at=at + timedelta(minutes=number),
        )
        for number in range(count)
    ]
    with transaction() as session:
        insert_rows(session, Model, [row.model_dump() for row in rows])


def _publish(folder: Path, name: str, kind: ModelKind, base: str) -> Model:
    files = folder / secrets.token_hex(4)
    files.mkdir(parents=True)
    (files / "config.json").write_text('{"model_type": "qwen2"}\n')
    (files / "model.safetensors").write_bytes(secrets.token_bytes(3000))
    artifact = f"models/{secrets.token_hex(8)}"
    published = get_store().publish_folder(files, artifact)
    return Model(
        name=name,
        kind=kind,
        base=base,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
    )
